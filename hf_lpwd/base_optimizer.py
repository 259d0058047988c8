"""What is known of base optimizers: which can be wrapped, how they decay themselves, which are fused."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_lpwd.decay_groups import param_names
from hf_lpwd.diagnostics import layer_norms
from hf_lpwd.low_precision import is_low_precision

# Exact classes only: a subclass may decay otherwise. Of these only Adafactor's update depends on the weights.
# Adam's family decays in its own pass, coupled or decoupled, and its update is free of lr, on which the
# identity behind `rwd` rests.
_ADAM_FAMILY = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
_L2_FAMILY = (
    torch.optim.SGD,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
    torch.optim.Adamax,
)
_DECOUPLED = (torch.optim.Adafactor,)
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
# Keys that a step of theirs does not read, beside those of the decay.
_UNREAD = ("params", "param_names", "initial_lr", "initial_weight_decay")
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Of torch's own: those that take sparse gradients. `SparseAdam` takes no others.
_TAKE_SPARSE = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)


def check_base(optimizer_cls: type[Optimizer], kwargs: dict[str, Any]) -> None:
    """Raises a TypeError that says why, if `LayerwiseDecay` cannot wrap ``optimizer_cls(**kwargs)``."""
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        raise TypeError(
            f"optimizer_cls must be a class derived from torch.optim.Optimizer, not {optimizer_cls!r}"
        )
    name = optimizer_cls.__name__
    if callable(getattr(optimizer_cls, "train", None)):
        raise TypeError(
            f"{name} cannot be wrapped: it changes the weights itself in train() and eval(); use its own "
            "weight_decay"
        )
    closure = inspect.signature(optimizer_cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(f"{name} cannot be wrapped: it takes several gradients in a step")
    if kwargs.get("differentiable"):
        raise TypeError(
            "differentiable=True is not supported: decay is applied in place, outside of autograd"
        )


def division_of_work(base: Optimizer, group: dict[str, Any], share: Any) -> tuple[str | None, dict[str, Any]]:
    """Divides a group's decay between the base optimizer's step and what surrounds it.

    Args:
        base: The base optimizer.
        group: One of its groups.
        share: `shrinkage(group)`.

    Returns:
        How to decay outside the step, and the values that the group has to have during it. Outside is one of
        ``"gradient"`` (add lambda * theta to it), ``"before"`` and ``"after"`` (shrink the weights then),
        ``"around"`` (after the step, subtract the share of the weights before it) and None.
    """
    moment, seen = _division_of_decay(base, group, share)
    if group.get("fused") and type(base) in _TAKE_SPARSE:
        # torch's fused SGD knows no sharded tensors, which FSDP2 may have put into the group since it was
        # made, and no fused kernel knows sparse gradients.
        sharded = any(hasattr(parameter, "full_tensor") for parameter in group["params"][:1])
        if (sharded and type(base) is torch.optim.SGD) or _with_sparse_gradients(group["params"]):
            seen = {**seen, "fused": False}
    return moment, seen


def _division_of_decay(
    base: Optimizer, group: dict[str, Any], share: Any
) -> tuple[str | None, dict[str, Any]]:
    timing, lr = group["decay_timing"], group.get("lr")
    adam, l2 = type(base) in _ADAM_FAMILY, type(base) in _L2_FAMILY
    if timing == "l2" and group["weight_decay"] > 0.0:
        if adam:
            return None, {"decoupled_weight_decay": False}
        return (None, {}) if l2 else ("gradient", {"weight_decay": 0.0})
    if timing in ("l2", "pwd") or (isinstance(share, float) and share == 0.0):
        return None, {"weight_decay": 0.0}
    # Its own pass would round the decay of low-precision weights to nothing.
    own_pass = not any(map(is_low_precision, {p.dtype for p in group["params"]}))
    if timing == "wd" and group["decay_coupling"] == "lr" and own_pass and (adam or type(base) in _DECOUPLED):
        return None, {"decoupled_weight_decay": True} if adam else {}
    # Reading a tensor would stall the device; independent decay goes on where a warm-up starts from lr = 0.
    if not (adam and own_pass) or isinstance(lr, Tensor) or lr == 0.0:
        return "after" if timing == "rwd" else "before" if adam or l2 else "around", {"weight_decay": 0.0}
    lr_seen = lr * (1.0 - share) if timing == "rwd" else lr
    return None, {"lr": lr_seen, "weight_decay": share / lr_seen, "decoupled_weight_decay": True}


def check_sparse_gradients(base: Optimizer) -> None:
    """Raises a TypeError that names a parameter whose gradient is sparse where it cannot be, or dense.

    torch's own errors name none, and come when other parameters have been changed already. Optimizers that
    are not torch's are left to say what they take.
    """
    if type(base) in _ADAM_FAMILY and len(base.state) == sum(len(g["params"]) for g in base.param_groups):
        return  # each has had a dense gradient; asking all of them anew would take a percent of the step
    name, takes_dense = type(base).__name__, type(base) is not torch.optim.SparseAdam
    takes_sparse = type(base) in _TAKE_SPARSE or not type(base).__module__.startswith("torch.optim")
    for number, group in enumerate(base.param_groups):
        sparse = _with_sparse_gradients(group["params"])
        if takes_dense and not sparse:
            continue
        for parameter, which in zip(group["params"], param_names(group, number), strict=False):
            if parameter.grad is None:
                continue
            if not parameter.grad.is_sparse:
                if not takes_dense:
                    raise TypeError(
                        f"{which} has a dense gradient, but {name} takes sparse ones only: use SGD or Adagrad"
                    )
            elif not takes_sparse:
                raise TypeError(
                    f"{which} has a sparse gradient, which {name} does not take: use SGD or Adagrad, or "
                    "sparse=False where the model makes it"
                )
            elif group["decay_timing"] == "l2" and group["weight_decay"] > 0.0:
                raise TypeError(
                    f"{which} has a sparse gradient, which timing 'l2' would make dense: use 'wd', 'rwd' or "
                    "'pwd', or set its weight_decay to 0"
                )


def _with_sparse_gradients(params: list[Tensor]) -> list[Tensor]:
    return [p for p in params if (gradient := p.grad) is not None and gradient.is_sparse]


def joined_groups(base: Optimizer) -> list[dict[str, Any]]:
    """Joins neighbouring groups between which a step of the base optimizer makes no difference.

    Under ``pwd`` the groups of all layers are alike to it, and each would cost it the start of a pass: some
    percent of the step.

    Returns:
        `base.param_groups`, if its class is not known to treat each parameter by itself.
    """
    groups = base.param_groups
    all_differ = len({group["weight_decay"] for group in groups}) == len(groups)
    if all_differ or type(base) not in _FUSED or any(isinstance(group["lr"], Tensor) for group in groups):
        return groups
    joined: list[dict[str, Any]] = []
    previous: dict[str, Any] | None = None
    for group in groups:
        read = {key: group[key] for key in group if key not in _UNREAD and not key.startswith("decay_")}
        if read == previous:
            joined[-1]["params"] += group["params"]
        else:
            joined.append({**read, "params": [*group["params"]]})
        previous = read
    return joined


def allocates_state(groups: list[dict[str, Any]]) -> bool:
    """Recognises the step of torch.distributed.checkpoint that only makes an optimizer allocate its state.

    It is made with all learning rates and gradients at zero and must leave the weights as they are, which
    independent decay and ``pwd`` would not.
    """
    if any(
        lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0.0
        for lr in (group.get("lr") for group in groups)
    ):
        return False
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    if any(gradient.is_sparse for gradient in gradients):
        return False
    return layer_norms({"all": gradients}).get("all") == 0.0


def has_fused_kernel(optimizer_cls: type[Optimizer], params: Iterable[Tensor]) -> bool:
    """Tells whether ``optimizer_cls(params, fused=True)`` works: the class, and the devices of `params`."""
    return optimizer_cls in _FUSED and all(
        parameter.device.type in _FUSED_DEVICES and parameter.is_floating_point() for parameter in params
    )
