"""What a study measures during training: opposing penalty by layer, and the paper's test accuracies."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from hf_lpwd.decay_groups import decay_fraction
from hf_lpwd.vision.data.images import ImageDataset
from hf_lpwd.vision.metrics import logits_only


class OpposingPenalty(TrainerCallback):
    """Measures R_op by layer at the steps that are logged, under timing ``wd`` coupled to the learning rate.

    The other timings cannot be measured so: ``rwd`` and ``pwd`` never push a weight away from zero, and the
    L2 penalty of ``l2`` passes through the optimizer.

    Args:
        layers: Parameter name -> what the layer is called.

    Attributes:
        steps: Step of each measurement.
        rates: Layer -> R_op at each step; ``"all"`` is that of all decayed parameters.
    """

    def __init__(self, layers: dict[str, str]) -> None:
        self.layers = layers
        self.steps: list[int] = []
        self.rates: dict[str, list[float]] = {}
        self._before: list[Tensor] | None = None

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keeps the decayed weights, if this step is to be measured."""
        if (state.global_step + 1) % max(state.logging_steps, 1) == 0:
            self._before = [parameter.detach().clone() for _, parameter, _ in decayed(kwargs["optimizer"])]

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Measures: with the decay taken out again, the new weights are those after the update alone."""
        before, self._before = self._before, None
        if not before:
            return
        by_layer: dict[str, list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for theta, (name, parameter, fraction) in zip(before, decayed(kwargs["optimizer"]), strict=True):
            measured = theta, parameter.detach() + fraction * theta, fraction
            by_layer["all"].append(measured)
            by_layer[self.layers[name]].append(measured)
        self.steps.append(state.global_step + 1)
        for layer, measured_of_layer in by_layer.items():
            rate = opposing_penalty_rate(*zip(*measured_of_layer, strict=True))
            self.rates.setdefault(layer, []).append(rate)


def opposing_penalty_rate(
    weights: Iterable[Tensor], updated: Iterable[Tensor], fractions: Iterable[float]
) -> float:
    """Returns the fraction of elements that decoupled weight decay pushes *away* from zero.

    With theta the weights before a step and a = theta - eta * u after its update, the ``wd`` step
    ``a - eta * lambda * theta`` is larger than a in magnitude if and only if
    ``eta * lambda * theta^2 > 2 * theta * a``: the update crossed zero, or came close, and the decay still
    points where the weight was. Decay that sees the update (``rwd``, ``pwd``) never does this.

    Args:
        weights: theta, tensors of any shape.
        updated: a, the same shapes.
        fractions: eta * lambda of each tensor; where it is 0, elements do not count.

    Source: the delay defect of *Layer-wise Pre-weight Decay* (OpenReview 0GZ1Bq4Tfr).
    """
    opposed: Tensor | int = 0
    total = 0
    for theta, a, fraction in zip(weights, updated, fractions, strict=True):
        if fraction > 0.0:
            opposed = opposed + (fraction * theta.square() > 2.0 * theta * a).sum()
            total += theta.numel()
    return float(opposed) / total if total else 0.0


def decayed(optimizer: Any) -> Iterator[tuple[str, Tensor, float]]:
    """Name, parameter and eta * lambda of what decays under ``wd``, coupled to the learning rate."""
    for group in optimizer.param_groups:
        coupled_wd = group.get("decay_timing") == "wd" and group["decay_coupling"] == "lr"
        if coupled_wd and (fraction := float(decay_fraction(group))) > 0.0:
            for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False):
                yield name, parameter, fraction


class StepTimes(TrainerCallback):
    """Measures the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it."""
        self.seconds.append(time.monotonic() - self._start)


class TestAfterEpoch(TrainerCallback):
    """Measures test accuracy after every epoch, which only the paper's metric needs.

    Nothing else sees what it reads: the checkpoint is still selected on validation.
    """

    def __init__(self, images: ImageDataset, batch_size: int) -> None:
        self.images = images
        self.batch_size = batch_size
        self.accuracies: list[float] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures the accuracy."""
        self.accuracies.append(accuracy(kwargs["model"], self.images, self.batch_size))


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageDataset, batch_size: int) -> float:
    """Fraction of images classified correctly, in evaluation mode; leaves the mode of the model as it was."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = 0
    for start in range(0, len(images), batch_size):
        batch = images.__getitems__(range(start, min(start + batch_size, len(images))))
        batch = images.transform.finish({name: values.to(device) for name, values in batch.items()})
        outputs = model(pixel_values=batch["pixel_values"])
        logits = outputs.logits if hasattr(outputs, "logits") else logits_only(outputs)
        right += int((logits.argmax(dim=-1) == batch["labels"]).sum())
    model.train(was_training)
    return right / len(images)
