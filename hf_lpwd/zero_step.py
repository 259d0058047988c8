"""A step of a copy of an optimizer with zero gradients: all that it does to weights is decay."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.parameters import whole
from hf_lpwd.plan import LayerPlan

Result = TypeVar("Result")

#: Elements of which weights, gradients and a fresh optimizer state exist twice at a time.
CHUNK_ELEMENTS = 2**24
#: Steps until one decays: ADOPT's first only starts its state, and RAdam's first five may do nothing.
_MOST_STEPS = 8
#: Counts of steps that some optimizers keep in their groups.
_COUNTERS = ("step", "counter")
#: What other keys of a group hold while it is measured.
_WHILE_MEASURED = {"decay_debt": 0.0, "decay_applied": False, "train_mode": True}


def zero_step(
    optimizer: Optimizer, model: nn.Module, read: Callable[[dict[str, Any], Tensor, Tensor], Result]
) -> dict[str, Result]:
    """Takes a step of a copy of an optimizer with zero gradients, some parameters at a time.

    The copy starts from a fresh state, so that momentum does not hide the decay, and has no hooks. It has the
    learning rate of each group; its `initial_lr` where that is 0, as at the start of a warmup. Parameters
    whose weights are all 0 are set to 1. Of a schedule-free optimizer, the sequence z counts, of which the
    weights are an average. Afterwards weights, gradients and random numbers are bit for bit what they were.
    No more than `CHUNK_ELEMENTS` elements, or one parameter, are held twice.

    Returns:
        Name -> what `read` makes of a parameter's group, its weights before the step and those after it, for
        each trainable parameter that the optimizer has.
    """
    optimizer = _unwrapped(optimizer)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = [[p for p in group["params"] if id(p) in names] for group in optimizer.param_groups]
    if not any(groups):
        raise ValueError("the optimizer has no trainable parameter of this model")
    found: dict[str, Result] = {}
    with _kept(optimizer), torch.no_grad():
        for number, members in enumerate(groups):
            for chunk in _chunks(members):
                results = _step_and_read(optimizer, number, chunk, read)
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
    number: int,
    chunk: list[Tensor],
    read: Callable[[dict[str, Any], Tensor, Tensor], Result],
) -> list[Result]:
    """Steps some parameters of the group with this number, and puts their weights back."""
    kept = [p.detach().clone() for p in chunk]
    try:
        for parameter in chunk:
            if not whole(parameter).any():
                parameter.fill_(1.0)
        before = [p.detach().clone() for p in chunk]
        try:
            group, after = _step(optimizer, number, chunk, before, fresh=True)
        except Exception:
            # Some make their state in the constructor, and cannot do without it.
            _copy(chunk, before)
            group, after = _step(optimizer, number, chunk, before, fresh=False)
        return [read(group, b, a) for b, a in zip(before, after, strict=True)]
    except Exception as error:
        name, kind = type(optimizer).__name__, type(error).__name__
        raise RuntimeError(f"{name} cannot make a step with zero gradients: {kind}: {error}") from error
    finally:
        _copy(chunk, kept)
        for parameter in chunk:
            parameter.grad = None


def _step(
    optimizer: Optimizer, number: int, chunk: list[Tensor], before: list[Tensor], *, fresh: bool
) -> tuple[dict[str, Any], list[Tensor]]:
    """Steps some parameters of one group alone, and returns the group and what became of them."""
    twin, states = _twin(optimizer, [] if fresh else chunk)
    group = twin.param_groups[number]
    twin.param_groups[:] = [group]
    group |= {"params": chunk} | {key: group[key] * 0 for key in _COUNTERS if key in group}
    if not float(group.get("lr", 1.0)) and "initial_lr" in group:
        group["lr"] = group["initial_lr"]
    group |= {key: value for key, value in _WHILE_MEASURED.items() if key in group}
    schedule_free = "train_mode" in group or hasattr(twin, "train_mode")
    for _ in range(_MOST_STEPS):
        for parameter in chunk:
            parameter.grad = None
        if isinstance(twin, LayerwiseDecay):
            twin.decay_waiting()
        for parameter in chunk:
            parameter.grad = torch.zeros_like(parameter)
        twin.step()
        stepped = states if schedule_free else []
        z = {id(p): state[p]["z"] for state in stepped for p in chunk if "z" in state.get(p, ())}
        after = [z.get(id(p), p.detach()) for p in chunk]
        due = group.get("weight_decay") and not group.get("decay_debt")
        if not due or not all(torch.equal(whole(a), whole(b)) for a, b in zip(after, before, strict=True)):
            break
    return group, after


def _twin(optimizer: Optimizer, stateful: list[Tensor]) -> tuple[Optimizer, list[dict[Any, Any]]]:
    """Copies an optimizer, and those that it holds, around the same parameters.

    Its states, returned too, are those before the first step: zeros for `stateful`, none for others.
    """
    optimizers = _nested(optimizer)
    parameters = _parameters(optimizers)
    # Objects that the copies share with the originals.
    memo: dict[int, Any] = {id(p): p for p in parameters}
    values = [value for each in optimizers for value in vars(each).values()]
    memo |= {id(value): value for value in values if isinstance(value, (nn.Module, LayerPlan))}
    states = []
    for state in _states(optimizers, parameters):
        states.append(copy.copy(state))
        states[-1].clear()
        states[-1].update(_before_the_first_step(state, stateful, memo))
        memo[id(state)] = states[-1]
    twins = [object.__new__(type(each)) for each in optimizers]
    memo |= {id(each): twin for each, twin in zip(optimizers, twins, strict=True)}
    for each, twin in zip(optimizers, twins, strict=True):
        for name, value in vars(each).items():
            if name.endswith("_hooks"):
                vars(twin)[name] = type(value)()
            # A learning-rate scheduler puts its own `step` over the class's.
            elif not (callable(value) and hasattr(type(each), name)):
                # Locks and process groups cannot be copied, and are shared.
                with contextlib.suppress(TypeError):
                    value = copy.deepcopy(value, memo)
                vars(twin)[name] = value
        if "train_mode" in vars(twin):
            twin.train_mode = True  # type: ignore[attr-defined]
    return twins[0], states


def _before_the_first_step(
    state: dict[Any, Any], parameters: Sequence[Tensor], memo: dict[int, Any]
) -> dict[Any, Any]:
    """A state as before the first step: zeros for some parameters, and copies of what is of none."""
    members = {id(p) for p in parameters}
    found = {}
    for key, value in state.items():
        if not isinstance(key, (Tensor, int)):
            found[key] = copy.deepcopy(value, memo)
        elif _identity(key) in members:
            zeroed = {k: torch.zeros_like(v) for k, v in value.items() if isinstance(v, Tensor)}
            found[key] = copy.deepcopy({k: v for k, v in value.items() if k not in zeroed}, memo) | zeroed
    return found


def _identity(key: Any) -> int:
    """Which parameter a key of a state stands for: itself, or the parameter whose id it is."""
    return key if isinstance(key, int) else id(key)


def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)


@contextlib.contextmanager
def _kept(optimizer: Optimizer) -> Iterator[None]:
    """Takes away the gradients and the hooks of all optimizers; puts them and the random numbers back."""
    parameters = _parameters(_nested(optimizer))
    gradients = [p.grad for p in parameters]
    hooks: list[Any] = [
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    ]
    kept_hooks = [dict(each) for each in hooks]
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type not in ("cpu", "meta")})
    kind = next((p.device.type for p in parameters if p.device.type not in ("cpu", "meta")), "cuda")
    try:
        for parameter in parameters:
            parameter.grad = None
        for each in hooks:
            each.clear()
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for each, kept in zip(hooks, kept_hooks, strict=True):
            each.update(kept)
        random.setstate(python)
        np.random.set_state(numpy)


def _parameters(optimizers: list[Optimizer]) -> list[Tensor]:
    return list(dict.fromkeys(p for each in optimizers for g in each.param_groups for p in g["params"]))


def _states(optimizers: list[Optimizer], parameters: list[Tensor]) -> list[dict[Any, Any]]:
    """The states of optimizers, and what else they keep by parameter."""
    known = {id(p) for p in parameters}
    found = {id(each.state): each.state for each in optimizers}
    for value in (value for each in optimizers for value in vars(each).values()):
        entries = value.items() if isinstance(value, dict) else ()
        if any(_identity(key) in known and isinstance(entry, dict) for key, entry in entries):
            found[id(value)] = value
    return list(found.values())


def _nested(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps."""
    found = [optimizer]
    for each in found:
        inner = [value for value in vars(each).values() if isinstance(value, Optimizer)]
        found += [value for value in inner if not any(value is known for known in found)]
    return found
