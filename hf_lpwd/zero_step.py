"""A step of any optimizer with zero gradients, which is taken back: all that it does to weights is decay."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.parameters import whole
from hf_lpwd.stale_gradients import StaleGradients

Result = TypeVar("Result")

#: Elements of which weights, gradients and a fresh optimizer state exist twice at a time.
CHUNK_ELEMENTS = 2**24
#: Steps until one decays: ADOPT's first only starts its state, and RAdam's first five may do nothing.
_MOST_STEPS = 8
#: Counts of steps that some optimizers keep in their groups.
_COUNTERS = ("step", "counter")
#: What other keys of a group hold while it is measured.
_WHILE_MEASURED = {"decay_debt": 0.0, "train_mode": True}
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


def zero_step(
    optimizer: Optimizer, model: nn.Module, read: Callable[[dict[str, Any], Tensor, Tensor], Result]
) -> dict[str, Result]:
    """Takes a step of an optimizer with zero gradients, some parameters at a time, and takes it back.

    The step starts from a fresh optimizer state, so that momentum does not hide the decay, and runs no hooks.
    It has the learning rate of each group; its `initial_lr` where that is 0, as at the start of a warmup.
    Parameters whose weights are all 0 are set to 1. Of a schedule-free optimizer, the sequence z counts, of
    which the weights are an average. Afterwards weights, gradients, optimizer state, settings of the groups,
    hooks and random numbers are bit for bit what they were. No more than `CHUNK_ELEMENTS` elements, or one
    parameter, are held twice.

    Args:
        optimizer: See `hf_lpwd.measure.measure_parameters`, also for what is raised.
        model: The model that it trains.
        read: Called with a parameter's group, its weights before the step and those after it.

    Returns:
        Name -> what `read` returned, for each trainable parameter that the optimizer has.
    """
    optimizer = _unwrapped(optimizer)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = [(g, [p for p in g["params"] if id(p) in names]) for g in optimizer.param_groups]
    if not any(members for _, members in groups):
        raise ValueError("the optimizer has no trainable parameter of this model")
    found: dict[str, Result] = {}
    with _taken_back(optimizer) as states, torch.no_grad():
        for group, members in groups:
            for chunk in _chunks(members):
                results = _step_and_read(optimizer, states, group, chunk, read)
                found |= zip((names[id(p)] for p in chunk), results, strict=True)
    return {name: found[name] for name in names.values() if name in found}


def _unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's wrapper; refuses what steps copies of the weights."""
    name = type(optimizer).__name__
    if "deepspeed" in type(optimizer).__module__ or "DeepSpeed" in name:
        raise TypeError(
            f"{name} steps flat copies of the weights, which cannot be told apart: "
            "measure the optimizer before it is given to DeepSpeed"
        )
    inner = getattr(optimizer, "optimizer", None)
    if type(optimizer).__module__.startswith("accelerate.") and inner is not None:
        return _unwrapped(inner)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {name}, but must be a torch.optim.Optimizer")
    # torchao's CPUOffloadOptimizer lacks the one, pytorch_optimizer's SafeFP16Optimizer the other.
    if not (hasattr(optimizer, "state") and hasattr(optimizer, "param_groups")):
        raise TypeError(f"{name} steps copies of the weights: measure the optimizer that it wraps")
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


def _step_and_read(
    optimizer: Optimizer,
    states: list[dict[Any, Any]],
    group: dict[str, Any],
    chunk: list[Tensor],
    read: Callable[[dict[str, Any], Tensor, Tensor], Result],
) -> list[Result]:
    """Steps some parameters of one group and puts their weights back."""
    kept = [p.detach().clone() for p in chunk]
    settings = _Kept([group])
    try:
        for parameter in chunk:
            if not whole(parameter).any():
                parameter.fill_(1.0)
        before = [p.detach().clone() for p in chunk]
        try:
            after = _step(optimizer, states, group, chunk, before, fresh=True)
        except Exception:
            # Some make their state in the constructor, and cannot do without it.
            settings.restore()
            _copy(chunk, before)
            after = _step(optimizer, states, group, chunk, before, fresh=False)
        return [read(group, b, a) for b, a in zip(before, after, strict=True)]
    except Exception as error:
        name, kind = type(optimizer).__name__, type(error).__name__
        raise RuntimeError(f"{name} cannot make a step with zero gradients: {kind}: {error}") from error
    finally:
        settings.restore()
        _copy(chunk, kept)


def _step(
    optimizer: Optimizer,
    states: list[dict[Any, Any]],
    group: dict[str, Any],
    chunk: list[Tensor],
    before: list[Tensor],
    *,
    fresh: bool,
) -> list[Tensor]:
    """Steps some parameters of one group alone, and returns what became of them."""
    groups, kept_groups = optimizer.param_groups, list(optimizer.param_groups)
    kept_states = [dict(state) for state in states]
    try:
        for state, kept in zip(states, kept_states, strict=True):
            state.clear()
            state.update(_before_the_first_step(kept, [] if fresh else chunk))
        groups[:] = [group]
        group |= {"params": chunk} | {key: group[key] * 0 for key in _COUNTERS if key in group}
        if not float(group.get("lr", 1.0)) and "initial_lr" in group:
            group["lr"] = group["initial_lr"]
        group |= {key: value for key, value in _WHILE_MEASURED.items() if key in group}
        schedule_free = "train_mode" in group or hasattr(optimizer, "train_mode")
        for _ in range(_MOST_STEPS):
            if isinstance(optimizer, LayerwiseDecay):
                group["decay_applied"] = False
                # The real one goes on knowing the gradients of the training loop.
                optimizer._stale = StaleGradients()
                optimizer.train()
            for parameter in chunk:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            stepped = states if schedule_free else []
            z = {id(p): state[p]["z"] for state in stepped for p in chunk if "z" in state.get(p, ())}
            after = [z.get(id(p), p.detach()) for p in chunk]
            due = group.get("weight_decay") and not group.get("decay_debt")
            if not due or not all(
                torch.equal(whole(a), whole(b)) for a, b in zip(after, before, strict=True)
            ):
                break
        return after
    finally:
        for parameter in chunk:
            parameter.grad = None
        groups[:] = kept_groups
        for state, kept in zip(states, kept_states, strict=True):
            state.clear()
            state.update(kept)


def _before_the_first_step(state: dict[Any, Any], parameters: Sequence[Tensor]) -> dict[Any, Any]:
    """A state as before the first step: zeros for some parameters, and copies of what is of none."""
    members = {id(p) for p in parameters}
    # A copy refers to the same parameters, not to copies of them.
    memo = {id(key): key for key in state if isinstance(key, Tensor)}
    found = {}
    for key, value in state.items():
        if not isinstance(key, (Tensor, int)):
            found[key] = copy.deepcopy(value, memo)
        elif _identity(key) in members:
            zeroed = {k: torch.zeros_like(v) for k, v in value.items() if isinstance(v, Tensor)}
            found[key] = copy.deepcopy({k: v for k, v in value.items() if k not in zeroed}) | zeroed
    return found


def _identity(key: Any) -> int:
    """Which parameter a key of a state stands for: itself, or the parameter whose id it is."""
    return key if isinstance(key, int) else id(key)


def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)


class _Kept:
    """The contents of dicts and lists, to put back into the same objects; tensors keep their values, too."""

    def __init__(self, containers: Sequence[Any]) -> None:
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
def _taken_back(optimizer: Optimizer) -> Iterator[list[dict[Any, Any]]]:
    """Keeps all that a step may change but the weights and the states, which it yields, and puts it back."""
    optimizers = _nested(optimizer)
    groups = [group for each in optimizers for group in each.param_groups]
    parameters = list(dict.fromkeys(p for group in groups for p in group["params"]))
    gradients = [p.grad for p in parameters]
    attributes = [dict(vars(each)) for each in optimizers]
    values = [value for attribute in attributes for value in attribute.values()]
    # bitsandbytes keeps settings of parameters in an object that all its optimizers share.
    shared = [v for v in values if hasattr(v, "__dict__") and not callable(v)]
    values += [v for each in shared if not isinstance(each, ModuleType) for v in vars(each).values()]
    hooks = [getattr(each, name) for each in optimizers for name in _HOOKS if hasattr(each, name)]
    hooks += [getattr(torch_optimizer, name) for name in _GLOBAL_HOOKS]
    states = _states(optimizers, parameters)
    apart = {id(value) for value in (*states, *hooks, *(each.param_groups for each in optimizers))}
    inner = [value for value in values if isinstance(value, (dict, list)) and id(value) not in apart]
    kept = _Kept([*groups, *inner, [value for value in values if isinstance(value, Tensor)]])
    kept_hooks = _Kept(hooks)
    generators = [_generator_state(value) for value in values]
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type not in ("cpu", "meta")})
    kind = next((p.device.type for p in parameters if p.device.type not in ("cpu", "meta")), "cuda")
    try:
        for hook in hooks:
            hook.clear()
        for parameter in parameters:
            parameter.grad = None
        for each in optimizers:
            if "train_mode" in vars(each):
                each.train_mode = True  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices, device_type=kind):
            yield states
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


def _states(optimizers: list[Optimizer], parameters: list[Tensor]) -> list[dict[Any, Any]]:
    """The states of optimizers, and what else they keep by parameter."""
    known = {id(p) for p in parameters}
    found = {id(each.state): each.state for each in optimizers}
    for value in (value for each in optimizers for value in vars(each).values()):
        entries = value.items() if isinstance(value, dict) else ()
        if any(_identity(key) in known and isinstance(entry, dict) for key, entry in entries):
            found[id(value)] = value
    return list(found.values())


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
