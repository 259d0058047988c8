"""What a run will do, as facts: for the paragraph at its start, and for its JSON record."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from hf_lpwd.messages import counted
from hf_lpwd.plan import LayerPlan
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.facts import DataFacts
from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.progress import clock
from hf_lpwd.vision.training_args import ImageTrainingArguments


@dataclass(frozen=True)
class RunFacts:
    """The data of a run, its method and its length.

    Attributes:
        data: What the data is, and what of it is not used.
        decay: Weight decay in words.
        augmentation: What is done to training images, in words.
        device: Name of the device, with the number of processes if there are several.
        epochs: Passes over the training images.
        steps: Steps of the optimizer.
        images_per_step: Training images in a step, over all processes.
        seconds: Estimated time of the training; None before a batch has been timed.
    """

    data: DataFacts
    decay: str
    augmentation: str
    device: str
    epochs: float
    steps: int
    images_per_step: int
    seconds: float | None = None

    def describe(self) -> str:
        """Returns the facts as one paragraph."""
        return (
            f"{self.data.describe()} {self.decay}; augmentation: {self.augmentation}. On {self.device}: "
            f"{self.steps:,} step{'' if self.steps == 1 else 's'} of "
            f"{counted(self.images_per_step, 'image')}, "
            f"{self.epochs:.3g} epoch{'' if self.epochs == 1 else 's'}."
            + ("" if self.seconds is None else f" Estimated time: {clock(self.seconds)}.")
        )


def run_facts(
    data: DataFacts,
    transform: ImageTransform,
    data_args: DataTrainingArguments,
    plan: LayerPlan,
    args: ImageTrainingArguments,
) -> RunFacts:
    """Collects the facts of a run before its first step."""
    steps, steps_per_epoch = num_steps(args, data.splits["train"].images)
    done = [transform.augmentation]
    done += [f"RandAugment {transform.rand_augment}"] if transform.rand_augment is not None else []
    done += [f"random erasing {transform.random_erase:g}"] if transform.random_erase else []
    mixing = {"MixUp": data_args.mixup_alpha, "CutMix": data_args.cutmix_alpha}
    done += [f"{name} {alpha:g}" for name, alpha in mixing.items() if alpha]
    return RunFacts(
        data=data,
        decay=_decay_in_words(plan, args),
        augmentation=", ".join(done),
        device=_device_name(args),
        epochs=float(f"{steps / steps_per_epoch:.4g}"),
        steps=steps,
        images_per_step=args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
    )


def num_steps(args: ImageTrainingArguments, num_images: int) -> tuple[int, int]:
    """Optimizer steps of a run, and of an epoch, on so many training images."""
    batches = num_images / (args.train_batch_size * args.world_size)
    batches = max(1, math.floor(batches)) if args.dataloader_drop_last else math.ceil(batches)
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch), per_epoch


def with_time(facts: RunFacts, trainer: ImageTrainer) -> RunFacts:
    """Adds the time that the training will take, from the time of one batch.

    With several processes, the same batch also tells whether they have to look for parameters without a
    gradient, where the user does not say so.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # which have not set the model up yet
        return facts
    args = trainer.args
    load, compute, unused = trainer.try_batch()
    if args.ddp_find_unused_parameters is None and trainer.accelerator.ddp_handler is not None:
        trainer.accelerator.ddp_handler.find_unused_parameters = bool(unused)
    load /= max(1, args.dataloader_num_workers)
    compute /= max(1, args.n_gpu)

    def seconds(images: float, compute: float) -> float:
        return images * (max(load, compute) if args.dataloader_num_workers else load + compute)

    # A backward pass takes about twice the time of a forward pass.
    total = seconds(facts.steps * facts.images_per_step / args.world_size, compute)
    if trainer.eval_dataset is not None:
        images = num_evaluations(facts, args) * len(trainer.eval_dataset)
        total += seconds(images / args.world_size, compute / 3)
    return replace(facts, seconds=round(total, 1))


def num_evaluations(facts: RunFacts, args: ImageTrainingArguments) -> float:
    """How often a run is evaluated in training; a last epoch that is not whole counts as its part."""
    if args.eval_strategy == "epoch":
        return facts.epochs
    if args.eval_strategy == "no" or not args.eval_steps:
        return 0.0
    # Below 1 it is a part of all steps.
    return facts.steps / args.eval_steps if args.eval_steps >= 1 else 1.0 / args.eval_steps


def _decay_in_words(plan: LayerPlan, args: ImageTrainingArguments) -> str:
    learning = f"{args.optim.value}, learning rate {args.learning_rate:g} ({args.lr_scheduler_type.value})"
    if plan.mean_rate == 0.0:
        return f"No weight decays, at weight_decay {args.weight_decay:g}; {learning}"
    return (
        f"Weight decay {args.weight_decay:g} (mean {plan.mean_rate:.3g}), {args.decay_timing} x "
        f"{args.layer_schedule}; {learning}"
    )


def _device_name(args: ImageTrainingArguments) -> str:
    name = args.device.type
    if args.device.type == "cuda":
        name = torch.cuda.get_device_name(args.device)
    number = args.world_size * max(1, args.n_gpu)
    return f"{number} x {name}" if number > 1 else name
