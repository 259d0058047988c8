"""What an optimizer's step really does to each weight: measured by a step that is taken back."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.stale_gradients import StaleGradients

#: Elements of which weights, gradients and a fresh optimizer state exist twice at a time.
CHUNK_ELEMENTS = 2**24
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


@dataclass(frozen=True)
class MeasuredDecay:
    """What one step does to a parameter whose gradient is zero.

    Attributes:
        lr: Learning rate of its group during the measurement.
        weight_decay: Rate of its group; 0.0 where the group has none.
        promised: What the settings of the group multiply the weights by: ``1 - lr * weight_decay``, or
            ``1 - weight_decay`` under independent coupling.
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
        """Whether the step multiplies all weights by one factor."""
        return self.spread <= 4.0 * self.resolution or self.spread <= abs(self.measured - 1.0) / 2.0

    @property
    def agrees(self) -> bool:
        """Whether the step does what the settings of the group promise."""
        return self.multiplies and abs(self.measured - self.promised) <= self.resolution


def measure_parameters(optimizer: Optimizer, model: nn.Module) -> dict[str, MeasuredDecay]:
    """Takes a step of an optimizer with zero gradients, some parameters at a time, and takes it back.

    The step starts from a fresh optimizer state, so that momentum does not hide the decay, and runs no hooks.
    It has the learning rate of each group; its `initial_lr` where that is 0, as at the start of a warmup.
    Parameters whose weights are all 0 are measured at 1.

    Afterwards weights, gradients, optimizer state, settings of the groups, hooks and random numbers are bit
    for bit what they were. No more than `CHUNK_ELEMENTS` elements, or one parameter, are held twice.

    Args:
        optimizer: Any torch optimizer that steps without a closure, or accelerate's wrapper of one.
        model: The model that it trains, wrapped (DDP, FSDP2, PEFT, `torch.compile`) or not.

    Returns:
        Name -> measurement of each trainable parameter that the optimizer has, in the model's order.

    Raises:
        TypeError: DeepSpeed's optimizers, which step flat copies of the weights.
        ValueError: The optimizer has no trainable parameter of the model.
        RuntimeError: The optimizer cannot make such a step; the message has its reason.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        >>> {name: round(decay.measured, 6) for name, decay in measure_parameters(optimizer, model).items()}
        {'weight': 0.95, 'bias': 0.95}
    """
    optimizer = _unwrapped(optimizer)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = [(g, [p for p in g["params"] if id(p) in names]) for g in optimizer.param_groups]
    if not any(members for _, members in groups):
        raise ValueError("the optimizer has no trainable parameter of this model")
    found: dict[str, MeasuredDecay] = {}
    with _taken_back(optimizer), torch.no_grad():
        for group, members in groups:
            for chunk in _chunks(members):
                found |= zip((names[id(p)] for p in chunk), _measure(optimizer, group, chunk), strict=True)
    return {name: found[name] for name in names.values() if name in found}


def _unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's wrapper."""
    if "deepspeed" in type(optimizer).__module__ or "DeepSpeed" in type(optimizer).__name__:
        raise TypeError(
            f"{type(optimizer).__name__} steps flat copies of the weights, which cannot be told apart: "
            "measure the optimizer before it is given to DeepSpeed"
        )
    inner = getattr(optimizer, "optimizer", None)
    if type(optimizer).__module__.startswith("accelerate.") and inner is not None:
        return _unwrapped(inner)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, but must be a torch.optim.Optimizer")
    return optimizer


def _chunks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    for parameter in parameters:
        if chunk and sum(p.numel() for p in chunk) + parameter.numel() > CHUNK_ELEMENTS:
            yield chunk
            chunk = []
        chunk.append(parameter)
    if chunk:
        yield chunk


def _measure(optimizer: Optimizer, group: dict[str, Any], chunk: list[Tensor]) -> list[MeasuredDecay]:
    """Steps some parameters of one group and puts their weights back."""
    kept = [p.detach().clone() for p in chunk]
    settings = _Kept([group])
    try:
        for parameter in chunk:
            if not _whole(parameter).any():
                parameter.fill_(1.0)
        before = [p.detach().clone() for p in chunk]
        try:
            _step(optimizer, group, before, chunk, fresh=True)
        except Exception:
            # Some make their state in the constructor, and cannot do without it.
            settings.restore()
            _copy(chunk, before)
            _step(optimizer, group, before, chunk, fresh=False)
        owed = math.exp(-group.get("decay_debt", 0.0))
        return [_compare(group, b, p.detach(), owed) for b, p in zip(before, chunk, strict=True)]
    except Exception as error:
        name, kind = type(optimizer).__name__, type(error).__name__
        raise RuntimeError(f"{name} cannot make a step with zero gradients: {kind}: {error}") from error
    finally:
        settings.restore()
        _copy(chunk, kept)


def _step(
    optimizer: Optimizer, group: dict[str, Any], before: list[Tensor], chunk: list[Tensor], *, fresh: bool
) -> None:
    groups, kept_groups = optimizer.param_groups, list(optimizer.param_groups)
    kept_state = dict(optimizer.state)
    optimizer.state.clear()
    if not fresh:
        optimizer.state.update({p: _zeroed(kept_state[p]) for p in chunk if p in kept_state})
    groups[:] = [group]
    group["params"] = chunk
    if not float(group.get("lr", 1.0)) and "initial_lr" in group:
        group["lr"] = group["initial_lr"]
    if "decay_debt" in group:
        group["decay_debt"] = 0.0
    try:
        if isinstance(optimizer, LayerwiseDecay):
            group["decay_applied"] = False
            # The real one goes on knowing the gradients of the training loop.
            optimizer._stale = StaleGradients()
            optimizer.train()
        for parameter in chunk:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        due = group.get("weight_decay") and not group.get("decay_debt")
        if due and all(torch.equal(_whole(p), _whole(b)) for p, b in zip(chunk, before, strict=True)):
            # ADOPT's first step, for one, only starts its state.
            optimizer.step()
    finally:
        for parameter in chunk:
            parameter.grad = None
        groups[:] = kept_groups
        optimizer.state.clear()
        optimizer.state.update(kept_state)


def _zeroed(state: dict[str, Any]) -> dict[str, Any]:
    """A state as before the first step."""
    return {
        key: torch.zeros_like(value) if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in state.items()
    }


def _compare(group: dict[str, Any], before: Tensor, after: Tensor, owed: float) -> MeasuredDecay:
    lr, rate = float(group.get("lr", 1.0)), float(group.get("weight_decay", 0.0) or 0.0)
    promised = 1.0 - rate if group.get("decay_coupling") == "independent" else 1.0 - lr * rate
    old, new = _whole(before).double(), _whole(after).double()
    factor = float((old * new).sum() / old.square().sum())
    distances = (new - factor * old).abs() / old.abs().clamp_min(torch.finfo(before.dtype).tiny)
    eps = torch.finfo(before.dtype).eps
    return MeasuredDecay(
        lr=lr,
        weight_decay=rate,
        promised=promised,
        measured=factor * owed,
        spread=float(distances.amax()),
        # The factor itself is rounded, and then each product.
        resolution=eps / 2.0 + 2.0 * eps / math.sqrt(before.numel()),
    )


def _whole(tensor: Any) -> Tensor:
    """All of a tensor, also if FSDP2 has sharded it."""
    return tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)


class _Kept:
    """The contents of dicts and lists, to put back into the same objects; tensors keep their values, too."""

    def __init__(self, containers: Sequence[Any], shared: dict[int, Any] | None = None) -> None:
        self.containers = containers
        self.contents = [copy.copy(container) for container in containers]
        values = [value for c in containers for value in (c.values() if isinstance(c, dict) else c)]
        self.tensors = [
            (v, v.detach().clone()) for v in values if isinstance(v, Tensor) and not v.requires_grad
        ]

    def restore(self) -> None:
        for container, content in zip(self.containers, self.contents, strict=True):
            container.clear()
            container.update(content) if isinstance(container, dict) else container.extend(content)
        with torch.no_grad():
            for tensor, value in self.tensors:
                tensor.copy_(value)


@contextmanager
def _taken_back(optimizer: Optimizer) -> Iterator[None]:
    """Keeps all that a step may change but the weights, and puts it back."""
    optimizers = _nested(optimizer)
    groups = [group for each in optimizers for group in each.param_groups]
    parameters = list(dict.fromkeys(p for group in groups for p in group["params"]))
    gradients = [p.grad for p in parameters]
    attributes = [dict(vars(each)) for each in optimizers]
    inner = [
        value
        for each in attributes
        for name, value in each.items()
        if isinstance(value, (dict, list)) and name not in ("param_groups", "state", *_HOOKS)
    ]
    tensors = [value for each in attributes for value in each.values() if isinstance(value, Tensor)]
    kept = _Kept([*groups, *inner, tensors])
    hooks = [getattr(each, name) for each in optimizers for name in _HOOKS if hasattr(each, name)]
    hooks += [getattr(torch_optimizer, name) for name in _GLOBAL_HOOKS]
    kept_hooks = _Kept(hooks)
    generators = [_generator_state(value) for each in attributes for value in each.values()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type not in ("cpu", "meta")})
    kind = next((p.device.type for p in parameters if p.device.type not in ("cpu", "meta")), "cuda")
    try:
        for hook in hooks:
            hook.clear()
        for parameter in parameters:
            parameter.grad = None
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for each, attribute in zip(optimizers, attributes, strict=True):
            vars(each).clear()
            vars(each).update(attribute)
        kept.restore()
        kept_hooks.restore()
        for restore, state in filter(None, generators):
            restore(state)
        random.setstate(python)
        np.random.set_state(numpy)


def _generator_state(value: Any) -> tuple[Callable[[Any], Any], Any] | None:
    """How to put back the random numbers of a generator that an optimizer keeps, and what."""
    if isinstance(value, torch.Generator):
        return value.set_state, value.get_state()
    return (value.setstate, value.getstate()) if isinstance(value, random.Random) else None


def _nested(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps."""
    found = [optimizer]
    for each in found:
        inner = [value for value in vars(each).values() if isinstance(value, Optimizer)]
        found += [value for value in inner if not any(value is known for known in found)]
    return found
