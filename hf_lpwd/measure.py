"""What one step of an optimizer really does to each parameter, beside what its settings promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_lpwd.config import LPWDConfig
from hf_lpwd.parameters import whole
from hf_lpwd.plan import LayerPlan, plan_layers
from hf_lpwd.zero_step import zero_step

#: What a user expects: a plan, the settings of one, or a function from name and parameter to the rate.
Expected: TypeAlias = LayerPlan | LPWDConfig | Callable[[str, Tensor], float]


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
    def measured_rate(self) -> float:
        """The `weight_decay` that would promise `measured`."""
        # Up to the decay itself, so that rates coupled to the learning rate and independent ones read alike.
        promised = 1.0 - self.promised
        per_rate = promised / self.weight_decay if self.weight_decay else self.lr
        return (1.0 - self.measured) / per_rate if per_rate else 0.0

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
    """Measures what one step of an optimizer does to each weight when all gradients are zero.

    Both stay bit for bit as they are; see `hf_lpwd.zero_step.zero_step` for how it is done.

    Args:
        optimizer: Any torch optimizer that steps without a closure, or accelerate's wrapper of one.
        model: The model that it trains, wrapped (DDP, FSDP2, PEFT, `torch.compile`) or not.

    Returns:
        Name -> measurement of each trainable parameter that the optimizer has, in the model's order.

    Raises:
        TypeError: The optimizer steps copies of the weights, as those of DeepSpeed do.
        ValueError: The optimizer has no trainable parameter of the model.
        RuntimeError: The optimizer cannot make such a step; the message has the reason.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        >>> {name: round(decay.measured, 6) for name, decay in measure_parameters(optimizer, model).items()}
        {'weight': 0.95, 'bias': 0.95}
    """
    return zero_step(optimizer, model, _compare)


def _compare(group: dict[str, Any], before: Tensor, after: Tensor) -> MeasuredDecay:
    # The learning rate of schedulefree's optimizers has a warmup of its own.
    lr = float(group.get("scheduled_lr") or group.get("lr", 1.0))
    rate = float(group.get("weight_decay", 0.0) or 0.0)
    old, new = whole(before).double(), whole(after).double()
    factor = float((old * new).sum() / old.square().sum())
    distances = (new - factor * old).abs() / old.abs().clamp_min(torch.finfo(before.dtype).tiny)
    eps = torch.finfo(before.dtype).eps
    return MeasuredDecay(
        lr=lr,
        weight_decay=rate,
        promised=1.0 - _decay_of_a_step(group, lr, rate),
        measured=factor * math.exp(-group.get("decay_debt", 0.0)),
        spread=float(distances.amax()),
        # The factor itself is rounded, and then each product.
        resolution=eps / 2.0 + 2.0 * eps / math.sqrt(before.numel()),
    )


def _decay_of_a_step(group: dict[str, Any], lr: float, rate: float) -> float:
    """The fraction of a weight that the settings of a group say."""
    # Of this package; of pytorch_optimizer and timm's AdaBelief; of optimi.
    if group.get("decay_coupling") == "independent" or group.get("fixed_decay"):
        return rate
    return rate * lr / group["max_lr"] if group.get("decouple_lr") else rate * lr


def assert_decays(optimizer: Optimizer, model: nn.Module, expected: Expected) -> None:
    """Asserts that a step decays each parameter at the rate that is expected, and no other; for test suites.

    Args:
        optimizer: See `measure_decay`.
        model: The model that it trains.
        expected: A plan, the settings of one, or a function from a parameter's name and the parameter to its
            rate.

    Raises:
        AssertionError: A rate differs, or a trainable parameter is not in the optimizer; names the first.
        TypeError: `expected` is none of these.

    Example:
        >>> from hf_lpwd import create_lpwd_optimizer
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> optimizer = create_lpwd_optimizer(model, lr=0.1, weight_decay=0.5)
        >>> assert_decays(optimizer, model, LPWDConfig(weight_decay=0.5))
    """
    if isinstance(expected, LPWDConfig):
        expected = plan_layers(model, expected)
    if not isinstance(expected, LayerPlan) and not callable(expected):
        raise TypeError(f"expected must be an LPWDConfig, a LayerPlan or a function, not {expected!r}")
    measured = measure_parameters(optimizer, model)
    faults = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = expected[name].trained_rate if isinstance(expected, LayerPlan) else expected(name, parameter)
        if name not in measured:
            faults.append(f"{name} is not in the optimizer")
            continue
        decay = measured[name]
        strength = (1.0 - decay.promised) / decay.weight_decay if decay.weight_decay else decay.lr
        factor = 1.0 - strength * rate
        if abs(decay.measured - factor) > decay.resolution or not decay.multiplies:
            faults.append(f"{name} decays at {decay.measured_rate:.4g}, not at {rate:.4g}")
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise AssertionError("; ".join(faults[:3]) + more)
