"""The four timings as formulas: what happens to gradients and weights before and after the update eta * u(g).

theta are weights, lambda the rate, and s the fraction of a weight that one step takes away (eta * lambda, or
lambda alone if independent of the learning rate). A function that decays after the update returns how.

Base optimizers whose own pass computes the same (`hf_lpwd.base_optimizer.own_decay`) do without these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_lpwd.base_optimizer import has_sparse_gradient, update_ignores_weights
from hf_lpwd.decay_groups import parameter_name

AfterUpdate = Callable[[], Any]


def decay(weights: list[Tensor], s: float | Tensor) -> None:
    """Multiplies by 1 - s in place."""
    torch._foreach_mul_(weights, 1.0 - s)


def l2(weights: list[Tensor], group: dict[str, Any], base: Optimizer) -> AfterUpdate:
    """Steps to theta' = theta - eta u(g(theta) + lambda theta); afterwards puts the gradients back.

    Raises:
        TypeError: A gradient is sparse, or the base optimizer differentiates it.
    """
    gradients = [p.grad for p in weights if p.grad is not None]
    if sparse := [p for p in weights if has_sparse_gradient([p])]:
        raise TypeError(
            f"{parameter_name(sparse[0], base.param_groups)} has a sparse gradient, which decay_timing 'l2' "
            "would make dense: use 'wd', 'rwd' or 'pwd', or set its weight_decay to 0"
        )
    if any(gradient.requires_grad for gradient in gradients):
        raise TypeError(
            f"decay_timing 'l2' adds weight decay to the gradient, but {type(base).__name__} differentiates "
            "it (create_graph=True): use 'wd', 'rwd' or 'pwd'"
        )
    sign = -1.0 if group.get("maximize", getattr(base, "maximize", False)) else 1.0
    penalized = torch._foreach_add(gradients, weights, alpha=sign * group["weight_decay"])
    _set_gradients(weights, penalized)
    return partial(_set_gradients, weights, gradients)


def wd(weights: list[Tensor], s: float | Tensor, base: Optimizer) -> AfterUpdate:
    """Steps to theta' = theta - eta u(g(theta)) - s theta.

    If u may depend on the weights, with a copy of the decay, as large as the weights.
    """
    if update_ignores_weights(base):
        decay(weights, s)
        return list
    return partial(torch._foreach_sub_, weights, torch._foreach_mul(weights, s))


def rwd(weights: list[Tensor], s: float | Tensor, base: Optimizer) -> AfterUpdate:
    """Steps to theta' = (1 - s) (theta - eta u(g(theta)))."""
    return partial(decay, weights, s)


def pwd(weights: list[Tensor], s: float | Tensor) -> None:
    """Decays to theta^ = (1 - s) theta, of which the step is theta' = theta^ - eta u(g(theta^))."""
    decay(weights, s)


def _set_gradients(weights: list[Tensor], gradients: Iterable[Tensor]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
