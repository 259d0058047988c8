"""What a run needs: data, model and checks, before its first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.utils import logging

from hf_lpwd.checkpoints.run_folder import check_run
from hf_lpwd.checkpoints.run_record import CHANGES, LENGTH, read_record
from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import optimizer_from_plan
from hf_lpwd.messages import counted
from hf_lpwd.plan import LayerPlan, plan_layers
from hf_lpwd.vision.data.augmentation import Mixer, make_mixer
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.images import ImageDataset, finishes_later
from hf_lpwd.vision.data.splits import Splits, load_splits
from hf_lpwd.vision.launch import check_settings, set_up_launch, warn_of_no_effect
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.models import load_model_and_processor
from hf_lpwd.vision.run_facts import RunFacts, run_facts
from hf_lpwd.vision.run_settings import data_settings, run_settings
from hf_lpwd.vision.training_args import ImageTrainingArguments

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """What a run needs, loaded and checked before its first step."""

    model: nn.Module
    processor: Any
    splits: Splits
    images: dict[str, ImageDataset]
    mix: Mixer | None
    plan: LayerPlan
    settings: dict[str, Any]
    facts: RunFacts


def prepare(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training_args: ImageTrainingArguments,
    *,
    test_split: float | None = None,
) -> Run:
    """Loads data and model, and checks all that can be checked before the first step; see `load_splits`.

    Raises:
        ValueError: Something in the input is wrong; the message says what, in one line.
    """
    set_up_launch(training_args, training_args.decay_timing)
    check_settings(training_args)
    warn_of_no_effect(model_args, data_args, training_args)
    settings = run_settings(model_args, data_args, training_args)
    _check_run(training_args, settings)
    splits = load_splits(
        data_args,
        seed=training_args.seed,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        test_split=test_split,
    )
    if str(training_args.metric_for_best_model).endswith("top5_accuracy") and len(splits.class_names) <= 5:
        raise ValueError(
            f"metric_for_best_model is {training_args.metric_for_best_model!r}, which takes more than five "
            f"classes, but {splits.name} has {len(splits.class_names)}"
        )
    settings |= data_settings(splits)
    settings[CHANGES] = _check_run(training_args, settings)
    # The model's initial weights depend on the seed alone, not on what loading the data drew.
    set_seed(training_args.seed)
    model, processor = load_model_and_processor(model_args, splits.class_names)
    plan = plan_layers(model, LPWDConfig.from_args(training_args))
    # Refuses what the optimizer would, before the data is read; it allocates nothing until its first step.
    optimizer_from_plan(plan, model, torch.optim.SGD, lr=training_args.learning_rate)
    wanted = {"train": True, "validation": training_args.do_eval, "test": training_args.do_predict}
    images = {
        role: ImageDataset.from_split(
            splits,
            role,
            processor,
            data_args,
            seed=training_args.data_seed if training_args.data_seed is not None else training_args.seed,
            unfinished=finishes_later(training_args.device),
        )
        for role, needed in wanted.items()
        if needed and getattr(splits, role) is not None
    }
    for role, dataset in images.items():
        if dataset.num_skipped:
            one, many = "image that cannot be decoded is", "images that cannot be decoded are"
            logger.warning(f"{role}: {counted(dataset.num_skipped, one, many)} left out")
    facts = splits.facts.without_undecodable({role: part.num_skipped for role, part in images.items()})
    splits = replace(splits, facts=facts)
    mix = make_mixer(len(splits.class_names), data_args.mixup_alpha, data_args.cutmix_alpha)
    planned = run_facts(facts, images["train"].transform, data_args, plan, training_args)
    return Run(model, processor, splits, images, mix, plan, settings, planned)


def named_checkpoint(args: ImageTrainingArguments) -> str | bool | None:
    """Reads `resume_from_checkpoint`, which a command line can only give as text."""
    text = str(args.resume_from_checkpoint).lower()
    return {"true": True, "false": None, "none": None}.get(text, args.resume_from_checkpoint)


def _check_run(args: ImageTrainingArguments, settings: dict[str, Any]) -> str | None:
    """Checks folder and checkpoint; returns in what the run that this one goes on from was different."""
    named, output_dir = named_checkpoint(args), str(args.output_dir)
    if named and _extends(read_record(output_dir) or {}, settings):
        settings = {name: value for name, value in settings.items() if name not in LENGTH}
    if isinstance(named, str):
        return check_run(output_dir, settings, named, args.resume_with_changes)
    check_run(output_dir, settings)
    return (read_record(output_dir) or {}).get(CHANGES) if named else None


def _extends(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run is made longer whose learning rate does not depend on its length."""
    constant = now["lr_scheduler_type"] in ("constant", "constant_with_warmup", "inverse_sqrt")
    warmup_in_steps = now["warmup_steps"] == 0 or now["warmup_steps"] >= 1
    recorded = then.keys() >= set(LENGTH)
    return recorded and constant and warmup_in_steps and all(then[name] <= now[name] for name in LENGTH)
