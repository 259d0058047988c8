"""What one step of an optimizer really does to each parameter, as a factor, and what its group promises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_lpwd.parameters import whole
from hf_lpwd.zero_step import zero_step


@dataclass(frozen=True)
class MeasuredDecay:
    """What one step does to a parameter whose gradient is zero.

    Attributes:
        lr: Learning rate of its group during the measurement.
        weight_decay: Rate of its group; 0.0 where the group has none.
        promised: What the settings of the group multiply the weights by: ``1 - lr * weight_decay``, unless
            they couple the decay otherwise, as `decay_coupling` and the like of other libraries do.
        measured: What the step multiplied them by.
        spread: Largest relative distance of a weight from ``measured * weight``; rounding apart it is 0.0 if
            the decay is a multiplication, as decoupled decay is.
        resolution: Differences up to this are rounding, in the type and number of the weights.
    """

    lr: float
    weight_decay: float
    promised: float
    measured: float
    spread: float
    resolution: float

    @property
    def strength(self) -> float:
        """What the settings multiply a rate by: the learning rate, unless the decay is coupled otherwise."""
        return (1.0 - self.promised) / self.weight_decay if self.weight_decay else self.lr

    @property
    def measured_rate(self) -> float:
        """The `weight_decay` that would promise `measured`."""
        return (1.0 - self.measured) / self.strength if self.strength else 0.0

    @property
    def decays(self) -> bool:
        """Whether the step changes the weights."""
        return abs(self.measured - 1.0) > self.resolution or not self.multiplies

    @property
    def multiplies(self) -> bool:
        """Whether the step multiplies all weights by one factor, which may be that of a decay."""
        even = self.spread <= 4.0 * self.resolution or self.spread <= abs(self.measured - 1.0) / 2.0
        return even and 0.0 < self.measured < 2.0

    @property
    def agrees(self) -> bool:
        """Whether the step does what the settings of the group promise."""
        return self.multiplies and abs(self.measured - self.promised) <= self.resolution


def measure_parameters(optimizer: Optimizer, model: nn.Module) -> dict[str, MeasuredDecay]:
    """The measurement of each trainable parameter that the optimizer has, by name, in the model's order.

    What it takes and raises is that of `hf_lpwd.measure.measure_decay`; how it is done, that of `zero_step`.
    """
    return zero_step(optimizer, model, _compare)


def _compare(group: dict[str, Any], before: Tensor, after: Tensor) -> MeasuredDecay:
    # The optimizers of schedulefree warm up their learning rate themselves.
    lr = float(group.get("scheduled_lr") or group.get("lr", 1.0))
    rate = float(group.get("weight_decay", 0.0) or 0.0)
    # Of this package; of pytorch_optimizer and timm's AdaBelief; of optimi.
    independent = group.get("decay_coupling") == "independent" or group.get("fixed_decay")
    step_size = 1.0 if independent else lr / group["max_lr"] if group.get("decouple_lr") else lr
    old, new = whole(before).double(), whole(after).double()
    factor = float((old * new).sum() / old.square().sum())
    distances = (new - factor * old).abs() / old.abs().clamp_min(torch.finfo(before.dtype).tiny)
    eps = torch.finfo(before.dtype).eps
    return MeasuredDecay(
        lr=lr,
        weight_decay=rate,
        promised=1.0 - rate * step_size,
        measured=factor * math.exp(-group.get("decay_debt", 0.0)),
        spread=float(distances.amax()),
        # The factor itself is rounded, and then each product.
        resolution=eps / 2.0 + 2.0 * eps / math.sqrt(before.numel()),
    )
