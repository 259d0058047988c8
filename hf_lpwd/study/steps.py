"""How many steps a run takes, and what its learning rates add up to, before it starts."""

from __future__ import annotations

import math

import torch
from transformers import get_scheduler

from hf_lpwd.vision.training_args import ImageTrainingArguments


def decay_steps(args: ImageTrainingArguments, num_rows: int) -> float:
    """What a weight decay of 1 adds up to over a run: the sum of the learning rates of its steps.

    With decay that is independent of the learning rate, the number of steps.

    Args:
        args: How to train.
        num_rows: Training images.
    """
    total = num_steps(args, num_rows)
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


def num_steps(args: ImageTrainingArguments, num_rows: int) -> int:
    """Optimizer steps of a run on so many training images."""
    batches = num_rows / args.train_batch_size
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)
