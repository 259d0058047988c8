"""What weight decay does to weights: opposing penalty, norms, and decay that rounds to nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

Key = TypeVar("Key", bound=Hashable)


def rounds_to_nothing(fraction: float, dtype: torch.dtype) -> bool:
    """Tells whether multiplying by ``1 - fraction`` in `dtype` multiplies by 1.

    Args:
        fraction: eta * lambda, the fraction of a weight that one step takes away.
        dtype: Floating-point type of the weights; in bfloat16 the limit is 2^-9, in float16 2^-12.
    """
    return fraction > 0.0 and torch.tensor(1.0 - fraction, dtype=torch.float64).to(dtype).item() == 1.0


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
        fractions: eta * lambda of each tensor.

    Returns:
        R_op, between 0 and 1, over the elements of tensors that decay; 0.0 if there are none.

    Source: the delay defect of *Layer-wise Pre-weight Decay* (OpenReview 0GZ1Bq4Tfr).
    """
    opposed: Tensor | int = 0
    total = 0
    for theta, a, fraction in zip(weights, updated, fractions, strict=True):
        if fraction > 0.0:
            opposed = opposed + (fraction * theta.square() > 2.0 * theta * a).sum()
            total += theta.numel()
    return float(opposed) / total if total else 0.0


def layer_norms(tensors_by_layer: Mapping[Key, Sequence[Tensor]]) -> dict[Key, float]:
    """Returns the L2 norm over all tensors of each layer, with one transfer from the device.

    Args:
        tensors_by_layer: Layer -> tensors of any shapes; shards of `DTensor` count as the whole tensor.

    Returns:
        Layer -> norm, for the layers that have a tensor.
    """
    norms = {
        layer: _whole(get_total_norm([tensor.detach() for tensor in tensors])).float()
        for layer, tensors in tensors_by_layer.items()
        if tensors
    }
    if not norms:
        return {}
    device = next(iter(norms.values())).device
    return dict(zip(norms, torch.stack([norm.to(device) for norm in norms.values()]).tolist(), strict=True))


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
