"""What transformers and accelerate would ignore or refuse late, checked before anything loads."""

from __future__ import annotations

import logging
import os
from copy import copy
from typing import Any

import torch
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations, unset_hf_deepspeed_config
from transformers.trainer_utils import IntervalStrategy

from hf_lpwd.decay_groups import PWD_UNDER_DEEPSPEED
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.model_args import ModelArguments

logger = logging.getLogger(__name__)

#: accelerate leaves fp16 out on a CPU, without a word.
FP16_ON_A_CPU = "mixed precision fp16 needs a GPU, and on a CPU would be float32: use bf16 or none"

#: What `optim_args` cannot set -> the flag that does.
_OWN_FLAGS = {"weight_decay": "weight_decay", "lr": "learning_rate"}
#: After how many steps something is done -> the strategy that makes it count.
_STRATEGIES = {
    "eval_steps": "eval_strategy",
    "save_steps": "save_strategy",
    "logging_steps": "logging_strategy",
}


def set_up_launch(launched: Any, timing: str) -> None:
    """Refuses what cannot work as it was launched, and lets DeepSpeed's ZeRO 3 load and save whole weights.

    Args:
        launched: `TrainingArguments` or an `Accelerator`; of DeepSpeed's configuration in it one key is set.
        timing: When the weights decay.

    Raises:
        ValueError: Mixed precision is fp16 on a CPU, or the timing ``pwd`` under DeepSpeed.
    """
    if launched.mixed_precision == "fp16" and launched.device.type == "cpu":
        raise ValueError(FP16_ON_A_CPU)
    if launched.deepspeed_plugin is None:
        return
    if timing == "pwd":
        raise ValueError(PWD_UNDER_DEEPSPEED)
    # transformers would partition a model while it makes it: what no checkpoint holds would get other initial
    # weights than without DeepSpeed, and in timm's models partly none. It is partitioned before the training.
    unset_hf_deepspeed_config()
    # Else nothing that can be loaded would be in the folder of the run.
    zero = launched.deepspeed_plugin.deepspeed_config["zero_optimization"]
    zero["stage3_gather_16bit_weights_on_model_save"] = True


def check_settings(args: TrainingArguments) -> None:
    """Raises a ValueError if a setting has no effect, lacks another one, or needs a package not installed."""
    if args.label_names not in (None, ["labels"]):
        raise ValueError(
            f"label_names is {args.label_names}, but the models take 'labels': leave it out; the column of "
            "labels is label_column_name"
        )
    _check_schedule(args)
    _check_trackers(args)
    _check_optimizer(args)


def warn_of_no_effect(
    model_args: ModelArguments, data_args: DataTrainingArguments, args: TrainingArguments
) -> None:
    """Warns of settings that nothing reads, as others are set or not set."""
    for steps, strategy in _STRATEGIES.items():
        given, how = getattr(args, steps), getattr(args, strategy)
        if how != IntervalStrategy.STEPS and given not in (None, getattr(type(args), steps)):
            logger.warning("%s %g has no effect: %s is %s, not steps", steps, given, strategy, how.value)
    if data_args.auto_augment is None and data_args.ra_magnitude != DataTrainingArguments.ra_magnitude:
        logger.warning("ra_magnitude %d has no effect without auto_augment ra", data_args.ra_magnitude)
    name, revision = model_args.model_name_or_path, model_args.model_revision
    if name is None and model_args.image_processor_name is not None:
        logger.warning("image_processor_name has no effect: the model is trained from scratch, without one")
    source = name or model_args.config_name
    if revision != ModelArguments.model_revision and (source is None or os.path.exists(source)):
        what = "the model is trained from scratch" if source is None else f"{source} is on this machine"
        logger.warning("model_revision %s has no effect: %s", revision, what)


def _check_schedule(args: TrainingArguments) -> None:
    name, given = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(name, optimizer, 5, 10, args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        # transformers gives the other schedules what they need.
        lacks = name == SchedulerType.WARMUP_STABLE_DECAY and "num_decay_steps" not in given
        why = """it needs the steps of the decay, such as '{"num_decay_steps": 100}'""" if lacks else error
        raise ValueError(
            f"lr_scheduler_type {name.value!r} does not work with lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs}: {why}"
        ) from error
    if given and name in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        raise ValueError(f"lr_scheduler_kwargs is {given}, but lr_scheduler_type {name.value!r} takes none")
    if args.warmup_steps and optimizer.param_groups[0]["lr"] == 1.0:
        logger.warning(
            "warmup_steps %g has no effect: lr_scheduler_type %r has no warmup, and 'constant_with_warmup' "
            "has",
            args.warmup_steps,
            name.value,
        )


def _check_trackers(args: TrainingArguments) -> None:
    available = get_available_reporting_integrations()
    for tracker in args.report_to:
        if tracker not in available:
            raise ValueError(
                f"report_to is {tracker!r}, which is not installed: install its package or take one of none"
                f"{''.join(f', {name}' for name in available)}"
            )


def _check_optimizer(args: TrainingArguments) -> None:
    given = _optim_args(args.optim_args)
    for name, flag in _OWN_FLAGS.items():
        if name in given:
            raise ValueError(f"optim_args sets {name}: use --{flag}")
    plain = copy(args)
    plain.optim_args = None
    try:
        optimizer_cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
        without = Trainer.get_optimizer_cls_and_kwargs(plain)[1]
    except ImportError as error:
        raise ValueError(f"optim is {args.optim.value!r}: {error}") from error
    except ValueError:
        return  # it asks for the model, and will have it
    # torch's optimizers take what they use by name; the others rename some.
    ignored = [name for name in given if kwargs.get(name) == without.get(name)]
    if ignored and optimizer_cls.__module__.startswith("torch.optim"):
        raise ValueError(f"optim_args sets {ignored[0]}, which optim {args.optim.value!r} does not use")


def _optim_args(text: str | None) -> dict[str, str]:
    pairs = [part.strip().partition("=") for part in (text or "").split(",") if part.strip()]
    if not all(name and equals and value for name, equals, value in pairs):
        raise ValueError(f"optim_args is {text!r}, but must be like 'momentum=0.9,nesterov=True'")
    return {name.strip(): value for name, _, value in pairs}
