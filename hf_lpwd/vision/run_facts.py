"""What a run will do, as facts: for the paragraph at its start, and for its JSON record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_lpwd.plan import LayerPlan
from hf_lpwd.vision.data.facts import DataFacts
from hf_lpwd.vision.data.transforms import ImageTransform
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
    """

    data: DataFacts
    decay: str
    augmentation: str
    device: str
    epochs: float
    steps: int
    images_per_step: int

    def describe(self) -> str:
        """Returns the facts as one paragraph."""
        return (
            f"{self.data.describe()} {self.decay}; augmentation: {self.augmentation}. On {self.device}: "
            f"{self.steps:,} steps of {self.images_per_step} images, {self.epochs:g} epochs."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the facts as values that JSON can hold."""
        return {**asdict(self), "data": self.data.to_dict()}


def run_facts(
    data: DataFacts, transform: ImageTransform, mixing: str, plan: LayerPlan, args: ImageTrainingArguments
) -> RunFacts:
    """Collects the facts of a run before its first step.

    Args:
        data: From `load_splits`.
        transform: Of the training images.
        mixing: MixUp and CutMix in words; empty without them.
        plan: What will happen to each parameter.
        args: How to train.
    """
    accumulated = args.gradient_accumulation_steps
    batch = args.train_batch_size * args.world_size
    batches = math.ceil(data.splits["train"].images / batch)
    if args.dataloader_drop_last:
        batches = max(1, data.splits["train"].images // batch)
    steps_per_epoch = math.ceil(batches / accumulated)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    done = [transform.augmentation]
    done += [f"RandAugment {transform.rand_augment}"] if transform.rand_augment is not None else []
    done += [f"random erasing {transform.random_erase:g}"] if transform.random_erase else []
    return RunFacts(
        data=data,
        decay=_decay_in_words(plan, args),
        augmentation=", ".join([*done, *([mixing] if mixing else [])]),
        device=_device_name(args),
        epochs=round(steps / steps_per_epoch, 2),
        steps=steps,
        images_per_step=batch * accumulated,
    )


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
