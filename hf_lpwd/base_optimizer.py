"""What is known of base optimizers, as data, and what follows from it: how they decay, how they step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from hf_lpwd.config import FORMER_NAMES, check_timing
from hf_lpwd.decay_groups import decay_fraction
from hf_lpwd.low_precision import is_low_precision
from hf_lpwd.parameters import whole

# Exact classes only: a subclass may decay in another way.
# Their own `weight_decay` is coupled or decoupled, as a setting says. Their update u does not depend on the
# learning rate, on which the identity behind `rwd` rests.
_ADAM_FAMILY = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
# Their own `weight_decay` is coupled: lambda * theta is added to the gradient.
_COUPLED = (
    torch.optim.SGD,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
    torch.optim.Adamax,
)
# Their own `weight_decay` is decoupled, and their update depends on the weights.
_DECOUPLED = (torch.optim.Adafactor,)
# Have a fused kernel here, and no setting that concerns more than one parameter.
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Take sparse gradients, though their fused kernels do not.
_TAKE_SPARSE = (torch.optim.SGD, torch.optim.Adagrad)
# Their fused kernel knows no sharded tensors (`DTensor`).
_FUSED_UNSHARDED = (torch.optim.SGD,)
# Keys of a group that no step of a fused class reads.
_UNREAD = ("params", "param_names", "initial_lr", "initial_weight_decay", "layer_lr_scale")
# Keys in groups of optimizers that estimate their step size: D-Adaptation and Prodigy, DoG, Adafactor with
# `relative_step`. (The `d` of torch's Adafactor is another one.)
_OWN_STEP_SIZE = ("d", "reps_rel", "relative_step")

_NO_DECAY: dict[str, Any] = {"weight_decay": 0.0}


def check_base(optimizer_cls: type[Optimizer], kwargs: dict[str, Any]) -> None:
    """Raises a TypeError that says why, if `LayerwiseDecay` cannot wrap ``optimizer_cls(**kwargs)``."""
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        named = isinstance(optimizer_cls, (str, type))
        given = repr(optimizer_cls) if named else f"an object of {type(optimizer_cls).__name__}"
        raise TypeError(f"optimizer_cls must be a class derived from torch.optim.Optimizer, not {given}")
    for former in kwargs.keys() & {"timing", "coupling"}:
        raise TypeError(f"unexpected keyword argument {former!r}: did you mean {FORMER_NAMES[former]!r}?")
    name = optimizer_cls.__name__
    if callable(getattr(optimizer_cls, "train", None)):
        why = "it changes the weights itself in train() and eval(); use its own weight_decay"
        raise TypeError(f"{name} cannot be wrapped: {why}")
    if isinstance(getattr(optimizer_cls, "param_groups", None), property):
        why = "it wraps another optimizer; put LayerwiseDecay inside of it"
        raise TypeError(f"{name} cannot be wrapped: {why}")
    closure = inspect.signature(optimizer_cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(f"{name} cannot be wrapped: it takes several gradients in a step")
    if kwargs.get("differentiable"):
        raise TypeError(
            "differentiable=True is not supported: decay is applied in place, outside of autograd"
        )


def check_group(optimizer_cls: type[Optimizer], group: dict[str, Any]) -> None:
    """Raises a ValueError if a group's settings do not go together, or its `lr` is not the step size."""
    check_timing(group["decay_timing"], group["decay_coupling"])
    decay_fraction(group)
    coupled = group["decay_coupling"] == "lr" and group["decay_timing"] != "l2"
    if optimizer_cls.__module__.startswith("torch.optim") or not coupled or group["weight_decay"] == 0.0:
        return
    if any(group.get(key) for key in _OWN_STEP_SIZE):
        raise ValueError(
            f"{optimizer_cls.__name__} estimates its step size, of which lr is only a factor, so that "
            "lr * weight_decay would be far from the decay of a step: use decay_coupling 'independent', with "
            "weight_decay as the fraction of a weight that each step takes away"
        )


def own_decay(base: Optimizer, group: dict[str, Any], s: float | Tensor) -> dict[str, Any] | None:
    """Finds settings with which the base optimizer's own pass decays as a group's timing says.

    Returns:
        What the group has to hold during the step, or None if the decay of a step, `s`, has to be applied
        outside of it.
    """
    cls, timing = type(base), group["decay_timing"]
    if timing == "pwd" or group["weight_decay"] == 0.0:
        return _NO_DECAY
    adam = cls in _ADAM_FAMILY
    if timing == "l2":
        if adam:
            return {"decoupled_weight_decay": False}
        return {} if cls in _COUPLED and not has_sparse_gradient(group["params"]) else None
    # A single step rounds the decay of low-precision weights to nothing.
    if not (adam or cls in _DECOUPLED) or any(map(is_low_precision, {p.dtype for p in group["params"]})):
        return None
    if timing == "wd" and group["decay_coupling"] == "lr":
        return {"decoupled_weight_decay": True} if adam else {}
    # To read a tensor would stall the device; independent decay also applies while lr is 0.
    if not adam or isinstance(group["lr"], Tensor) or group["lr"] == 0.0:
        return None
    lr_seen = group["lr"] * (1.0 - s) if timing == "rwd" else group["lr"]
    return {"lr": lr_seen, "weight_decay": s / lr_seen, "decoupled_weight_decay": True}


def update_ignores_weights(base: Optimizer) -> bool:
    """Tells whether u is known to depend on gradients alone, so that decay before the update is ``wd``."""
    return type(base) in _ADAM_FAMILY or type(base) in _COUPLED


def step_base(base: Optimizer, seen: list[dict[str, Any]]) -> None:
    """Makes the base optimizer's step; hooks of all optimizers run for the `LayerwiseDecay` only.

    During the step, the values in `seen` replace those of each group.
    """
    groups = base.param_groups
    if type(base) in _TAKE_SPARSE:
        seen = [
            {**values, "fused": False} if group.get("fused") and not _kernel_takes(base, group) else values
            for group, values in zip(groups, seen, strict=True)
        ]
    originals = [{key: group[key] for key in values} for group, values in zip(groups, seen, strict=True)]
    try:
        for group, values in zip(groups, seen, strict=True):
            group.update(values)
        _unhooked_step(_joined(base) if type(base) in _FUSED else base)()
    finally:
        for group, values in zip(groups, originals, strict=True):
            group.update(values)


def _kernel_takes(base: Optimizer, group: dict[str, Any]) -> bool:
    params = group["params"]
    # FSDP2 may have put sharded tensors into the group since it was made.
    if type(base) in _FUSED_UNSHARDED and any(hasattr(parameter, "full_tensor") for parameter in params[:1]):
        return False
    return not has_sparse_gradient(params)


def has_sparse_gradient(params: list[Tensor]) -> bool:
    """Tells whether any of the parameters has a sparse gradient."""
    return any((gradient := p.grad) is not None and gradient.is_sparse for p in params)


def _joined(base: Optimizer) -> Optimizer:
    """Returns the base optimizer with neighbouring groups joined between which a step makes no difference.

    Under ``pwd`` the groups of all layers are alike to it, and each would cost it the start of a pass: some
    percent of the step. State and hooks are the base optimizer's own.
    """
    groups = base.param_groups
    if len({group["weight_decay"] for group in groups}) == len(groups) or any(
        isinstance(group["lr"], Tensor) for group in groups
    ):
        return base
    joined: list[dict[str, Any]] = []
    previous: dict[str, Any] | None = None
    for group in groups:
        read = {key: group[key] for key in group if key not in _UNREAD and not key.startswith("decay_")}
        if read == previous:
            joined[-1]["params"] += group["params"]
        else:
            joined.append({**read, "params": [*group["params"]]})
        previous = read
    view = object.__new__(type(base))
    view.__dict__.update(base.__dict__, param_groups=joined)
    return view


def _unhooked_step(optimizer: Optimizer) -> Callable[[], Any]:
    step = optimizer.step
    own_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if own_hooks or not getattr(step, "hooked", False):
        return step
    return partial(step.__wrapped__, optimizer)  # type: ignore[attr-defined]


def allocates_state(groups: list[dict[str, Any]]) -> bool:
    """Recognises the step of torch.distributed.checkpoint that only makes an optimizer allocate its state.

    It is made with all learning rates and gradients at zero and must leave the weights as they are, which
    independent decay and ``pwd`` would not.
    """
    lrs = [group.get("lr") for group in groups]
    if any(lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0.0 for lr in lrs):
        return False
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    if any(gradient.is_sparse for gradient in gradients):
        return False
    return bool(gradients) and float(whole(get_total_norm(gradients))) == 0.0


def has_fused_kernel(optimizer_cls: type[Optimizer], params: Iterable[Tensor]) -> bool:
    """Tells whether ``optimizer_cls(params, fused=True)`` works: the class, and the devices of `params`."""
    return optimizer_cls in _FUSED and all(
        parameter.device.type in _FUSED_DEVICES and parameter.is_floating_point() for parameter in params
    )
