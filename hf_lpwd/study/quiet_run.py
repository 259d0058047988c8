"""A run of `hf-lpwd train` that leaves nothing behind, and what its steps add up to before it starts."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback, get_scheduler
from transformers.utils import logging

from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import optimizer_from_plan
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import layer_name, plan_layers
from hf_lpwd.study.checks import TOTAL_DECAY
from hf_lpwd.study.config import RunSpec
from hf_lpwd.vision.arguments import Arguments, arguments_from
from hf_lpwd.vision.finetune import make_trainer
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.prepare import Run, prepare
from hf_lpwd.vision.run_facts import num_steps
from hf_lpwd.vision.training_args import ImageTrainingArguments

#: Of the training images, the test split where a dataset has none and `test_split` does not say otherwise. It
#: does not depend on the run's seed.
TEST_SPLIT = 0.15


def prepared(
    spec: RunSpec, folder: str | None = None
) -> AbstractContextManager[tuple[Run, ImageTrainingArguments]]:
    """Prepares a run of a study; see `quiet_run`."""
    total = spec.settings.get(TOTAL_DECAY)
    return quiet_run(arguments_from(spec.flags), folder, total_decay=total, test_split=TEST_SPLIT)


@contextmanager
def quiet_run(
    arguments: Arguments,
    folder: str | None = None,
    *,
    total_decay: float | None = None,
    test_split: float | None = None,
) -> Iterator[tuple[Run, ImageTrainingArguments]]:
    """Prepares a run of `hf-lpwd train` that prints nothing, uploads nothing, and whose folder does not stay.

    Args:
        arguments: Of `hf-lpwd train`; what they say of its folder, its output and the Hub is overruled.
        folder: Where the run may write, removed before and after; default: a temporary folder.
        total_decay: Sum of learning rate times weight decay over the run, in place of `weight_decay`.
        test_split: Fraction of the training images that is the test split of a dataset without one.

    Yields:
        The run and its training arguments.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    place = Path(folder or tempfile.mkdtemp(prefix="hf-lpwd-"))
    shutil.rmtree(place, ignore_errors=True)
    model_args, data_args, args = arguments
    args.output_dir, args.disable_tqdm, args.report_to = f"{place}/run", True, []
    args.do_train = args.do_eval = args.do_predict = True
    args.push_to_hub = False
    try:
        with redirect_stdout(StringIO()):
            if total_decay is not None:
                args.weight_decay = 0.0
            run = prepare(model_args, data_args, args, test_split=test_split)
            if total_decay is not None:
                # The images that cannot be decoded are known now, and with them the number of steps.
                args.weight_decay = total_decay / decay_steps(args, len(run.images["train"]))
                config = LPWDConfig.from_args(args, layer_map=run.plan.layer_map)
                run = replace(run, plan=plan_layers(run.model, config))
                optimizer_from_plan(run.plan, run.model, torch.optim.SGD, lr=args.learning_rate)
            yield run, args
    finally:
        shutil.rmtree(place, ignore_errors=True)


def quiet_trainer(
    run: Run,
    args: ImageTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    optimizer: LayerwiseDecay | None = None,
) -> ImageTrainer:
    """Makes the trainer of a run, which writes no results and prints nothing."""
    trainer = make_trainer(run, args, callbacks, optimizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def layer_of_parameter(run: Run) -> dict[str, str]:
    """Parameter name -> what its layer is called in the Trainer's logs: ``"layer_3"``."""
    return {name: layer_name(p.stack, p.layer) for name, p in run.plan.parameters.items()}


def decay_steps(args: ImageTrainingArguments, num_images: int) -> float:
    """What a weight decay of 1 adds up to over a run: the sum of the learning rates of its steps.

    With decay that is independent of the learning rate, the number of steps.

    Args:
        args: How to train.
        num_images: Training images.
    """
    total, _ = num_steps(args, num_images)
    if args.decay_coupling == "independent":
        return float(total)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return math.fsum(rates)
