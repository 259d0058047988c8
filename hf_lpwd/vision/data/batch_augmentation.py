"""MixUp and CutMix of finished training batches, and the loss of the labels that they mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

#: Pixel values [B, 3, h, w] and labels int64 [B] -> mixed pixel values, and probabilities [B, classes].
Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_mixer(num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0) -> Mixer | None:
    """Returns torchvision's MixUp or CutMix, of both one at random for each batch; None of neither.

    They draw from torch's global generator on the CPU, which checkpoints restore, and mix each image with
    the one before it in the batch.

    Args:
        num_classes: Number of classes.
        mixup_alpha: Of MixUp's Beta distribution; 0 for no MixUp.
        cutmix_alpha: Of CutMix's; 0 for no CutMix.
    """
    mixers = [
        mixer(alpha=alpha, num_classes=num_classes)
        for mixer, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        if alpha > 0
    ]
    return v2.RandomChoice(mixers) if mixers else None


def mixed_loss(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of mixed or plain labels; transformers' own takes probabilities for several labels each.

    Args:
        outputs: What the model returns; its `logits` are [B, C].
        labels: Probabilities [B, C], or classes int64 [B].
        num_items_in_batch: Samples in all batches and processes of the step, by which the sum over this batch
            is divided; default: those of this batch.
        label_smoothing: Share of the probability that is spread evenly over the classes.
    """
    logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()
    total = nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    # Under nn.DataParallel the Trainer gives a share of the number for each GPU.
    count = len(labels) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).sum()
    return total / count


def training_loss(model: nn.Module, batch: dict[str, Tensor], mix: Mixer | None) -> Tensor:
    """Mean loss of a batch in a training loop of one's own.

    Args:
        model: An image classifier.
        batch: Finished `pixel_values`, and `labels`.
        mix: From `make_mixer`; without it, the loss is the model's own.
    """
    if mix is None:
        return model(**batch).loss
    pixel_values, labels = mix(batch["pixel_values"], batch["labels"])
    return mixed_loss(model(pixel_values=pixel_values), labels)
