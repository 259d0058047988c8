"""Gradients that were computed before ``pwd`` decayed the weights, and must not be used in the step after it.

With such gradients ``pwd`` is silently ``wd``: frameworks whose closures do nothing, `train()` called after
`backward()`, or gradients accumulated over batches of which only the last one saw the decayed weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from hf_lpwd.decay_groups import parameter_name


class StaleGradients:
    """Knows which gradients were there at the decay, without keeping them in memory."""

    def __init__(self) -> None:
        # Parameter, gradient, its version, and whether it is not 0, which stays on the device until asked.
        self._found: list[tuple[Tensor, TensorWeakRef, int, Tensor | None]] = []
        # A weight that another optimizer has decayed since.
        self._elsewhere: Tensor | None = None
        self._used: tuple[Tensor, TensorWeakRef, int] | None = None

    def remember(self, params: list[Tensor]) -> None:
        """Notes the gradients that parameters have at the decay."""
        present = [(p, g) for p in params if (g := p.grad) is not None and _values(g).numel()]
        if not present:
            return
        nonzero: list[Any] = [None] * len(present)
        if not self._left_by_the_last_step():
            nonzero = [
                norm != 0.0 for norm in torch._foreach_norm([_values(g) for _, g in present], math.inf)
            ]
        for (parameter, gradient), flag in zip(present, nonzero, strict=True):
            self._found.append((parameter, TensorWeakRef(gradient), gradient._version, flag))

    def decayed_elsewhere(self, params: list[Tensor], groups: list[dict[str, Any]]) -> None:
        """Notes that another optimizer decayed parameters, which matters if `groups` wait for their step."""
        ids = set(map(id, params))
        waiting = [p for group in groups if group["decay_applied"] for p in group["params"]]
        self._elsewhere = next((p for p in waiting if id(p) in ids), self._elsewhere)

    def removed(self) -> None:
        """Call when gradients are set to None or 0."""
        self._found = []

    def used(self, groups: list[dict[str, Any]]) -> None:
        """Call after a step. Its gradients may stay if the next backward pass adds to or removes them."""
        self._found = []
        first = next((p for group in groups for p in group["params"] if p.grad is not None), None)
        self._used = None if first is None else (first, TensorWeakRef(first.grad), first.grad._version)

    def check(self, groups: list[dict[str, Any]]) -> None:
        """Raises a RuntimeError if the step would use gradients of other weights than the decayed ones."""
        if self._elsewhere is not None:
            raise RuntimeError(
                f"{parameter_name(self._elsewhere, groups)} was decayed by another LayerwiseDecay between "
                "train() and step(): give each parameter to one optimizer, or let them take turns, each with "
                "its own forward pass"
            )
        kept = [entry for entry in self._found if entry[0].grad is not None and entry[1]() is entry[0].grad]
        new = [(p, flag) for p, *_, flag in kept if flag is not None]
        if new:
            device = new[0][1].device
            nonzero = torch.stack([flag.to(device) for _, flag in new]).tolist()
            stale = [p for (p, _), flag in zip(new, nonzero, strict=True) if flag]
        else:
            unchanged = all(p.grad._version == version for p, _, version, _ in kept)  # type: ignore[union-attr]
            stale = [p for p, *_ in kept] if unchanged else []
        if stale:
            raise RuntimeError(
                "decay_timing 'pwd' takes gradients at the decayed weights, but the gradient of "
                f"{parameter_name(stale[0], groups)} was there before optimizer.train() decayed them: call "
                "optimizer.zero_grad(), then optimizer.train() before the forward pass of each batch, also "
                "of those whose gradients are accumulated, or use decay_timing 'rwd'"
            )

    def _left_by_the_last_step(self) -> bool:
        if self._used is None:
            return False
        parameter, gradient, version = self._used
        return (
            parameter.grad is not None and gradient() is parameter.grad and parameter.grad._version == version
        )


def _values(gradient: Tensor) -> Tensor:
    """The numbers that this process holds of a gradient, sparse and sharded ones too."""
    if gradient.is_sparse:
        return gradient._values()
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
