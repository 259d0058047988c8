"""A model in, its optimizer with layer-wise weight decay out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_lpwd.base_optimizer import has_fused_kernel
from hf_lpwd.config import FORMER_NAMES, SETTINGS, Coupling, LPWDConfig, Timing
from hf_lpwd.layers import Layers
from hf_lpwd.messages import unknown
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import LayerPlan, plan_layers
from hf_lpwd.schedules import Schedule, check_rate


def create_lpwd_optimizer(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW,
    *,
    lr: float,
    weight_decay: float,
    decay_timing: Timing = LPWDConfig.decay_timing,
    layer_schedule: Schedule = LPWDConfig.layer_schedule,
    decay_coupling: Coupling = LPWDConfig.decay_coupling,
    match_decay_budget: bool = LPWDConfig.match_decay_budget,
    decay_all: bool = LPWDConfig.decay_all,
    no_decay_pattern: str | Sequence[str] | None = LPWDConfig.no_decay_pattern,
    decay_by_pattern: Mapping[str, float] | None = LPWDConfig.decay_by_pattern,
    layer_lr_decay: float = LPWDConfig.layer_lr_decay,
    layer_map: Layers | None = LPWDConfig.layer_map,
    **optimizer_kwargs: Any,
) -> LayerwiseDecay:
    """Creates an optimizer with a weight decay for each layer, applied when `decay_timing` says.

    The defaults are the paper's method, *layer-wise pre-weight decay*: the rate rises linearly from 0 in the
    stem to `weight_decay` in the head, and is applied before the gradient is taken. In a custom training
    loop, call ``optimizer.train()`` before each forward pass; `transformers.Trainer` does.

    Args:
        model: Any timm or transformers model, or any module with a repeated stack of blocks. Parameters with
            `requires_grad=False` are left out; `add_param_group` gives them their layer's rate later.
        optimizer_cls: Class of the base optimizer; must take `lr`.
        lr: Learning rate; of the head, if `layer_lr_decay` is below 1. Then the groups carry their own `lr`,
            which every scheduler scales that starts from it; give `OneCycleLR`, `CyclicLR` and
            `SWALR` a list.
        weight_decay: The highest rate, which `layer_schedule` distributes over the layers; under a schedule
            the mean rate is lower, see `LayerPlan.mean_rate`.
        decay_timing: ``"l2"``, ``"wd"``, ``"rwd"`` or ``"pwd"``; see `LayerwiseDecay`.
        layer_schedule: See `layer_rates`.
        decay_coupling: ``"lr"``, or ``"independent"`` of the learning rate.
        match_decay_budget: Scale the rates so that their mean over all decayed elements is `weight_decay`.
        decay_all: Decay biases, norms and embeddings too.
        no_decay_pattern: One regular expression or several: only what they match does not decay.
        decay_by_pattern: Regular expression -> weight decay of the parameters that it matches.
        layer_lr_decay: Layer i of n has the learning rate ``lr * layer_lr_decay ** (n - i)``.
        layer_map: Replaces `layer_index_map(model)`: a map, or rules as that function takes.
        **optimizer_kwargs: Passed to `optimizer_cls`. `fused=True` is the default for torch's Adam, AdamW and
            SGD on devices that have the kernel.

    Returns:
        The optimizer, with one parameter group for each distinct rate and learning rate. `optimizer.plan` is
        the `LayerPlan` that it was made from.

    Raises:
        ValueError: A value is out of its range, or a parameter has no layer; the message names it.
        TypeError: `optimizer_cls` does not take one of `optimizer_kwargs`, or cannot be wrapped.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        >>> optimizer = create_lpwd_optimizer(model, torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
        >>> [round(group["weight_decay"], 3) for group in optimizer.param_groups]
        [0.0, 0.017, 0.033, 0.05]

    Source: *Layer-wise Pre-weight Decay*, OpenReview 0GZ1Bq4Tfr.
    """
    given = locals()  # so that a setting without a parameter here is an error, not a default
    config = LPWDConfig(**{name: given[name] for name in SETTINGS})
    check_keywords(optimizer_cls, optimizer_kwargs)
    if lr is None:
        raise ValueError("lr is None, but must be a number >= 0")
    return optimizer_from_plan(plan_layers(model, config), model, optimizer_cls, lr=lr, **optimizer_kwargs)


def optimizer_from_plan(
    plan: LayerPlan,
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW,
    *,
    lr: float,
    param_groups: Iterable[Any] | None = None,
    **optimizer_kwargs: Any,
) -> LayerwiseDecay:
    """Creates the optimizer that a plan describes; `create_lpwd_optimizer` makes the plan too.

    Args:
        plan: From `plan_layers`.
        model: The model of the plan, which may be wrapped since.
        optimizer_cls: Class of the base optimizer; must take `lr`.
        lr: Learning rate; of the head, if the plan has `layer_lr_decay`.
        param_groups: Groups, or parameters, as torch's optimizers take them, in place of
            `plan.param_groups(model, lr=lr)`.
        **optimizer_kwargs: See `create_lpwd_optimizer`, also for what is raised.

    Returns:
        The optimizer; `optimizer.plan` is the plan.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        >>> plan = plan_layers(model, LPWDConfig(weight_decay=0.3, decay_timing="rwd"))
        >>> optimizer_from_plan(plan, model, torch.optim.SGD, lr=0.1, momentum=0.9)
        LayerwiseDecay(SGD, rwd, coupling lr: lr 0.1, weight_decay 0 to 0.3, 4 groups)
    """
    if lr is not None and not isinstance(lr, Tensor):
        lr = check_rate(lr, "lr")
    groups = plan.param_groups(model, lr=lr) if param_groups is None else _as_groups(param_groups)
    parameters = (p[1] if isinstance(p, tuple) else p for group in groups for p in group["params"])
    if not optimizer_kwargs.keys() & {"fused", "foreach"} and has_fused_kernel(optimizer_cls, parameters):
        optimizer_kwargs["fused"] = True
    optimizer = LayerwiseDecay(
        groups,
        optimizer_cls,
        decay_timing=plan.config.decay_timing,
        decay_coupling=plan.config.decay_coupling,
        lr=lr,
        **optimizer_kwargs,
    )
    optimizer.plan = plan
    return optimizer


def _as_groups(given: Iterable[Any]) -> list[dict[str, Any]]:
    """Groups, or parameters, as torch takes them, with lists in place of iterators, which are read once."""
    groups = list(given)
    if groups and not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    as_lists = [[g["params"]] if isinstance(g["params"], Tensor) else list(g["params"]) for g in groups]
    return [{**group, "params": params} for group, params in zip(groups, as_lists, strict=True)]


def layer_param_groups(
    model: nn.Module, *, weight_decay: float, lr: float | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Makes parameter groups with a weight decay by layer, for any torch optimizer.

    Args:
        model: See `create_lpwd_optimizer`.
        weight_decay: The highest rate, which the schedule distributes over the layers.
        lr: Learning rate of the head; needed under `layer_lr_decay`.
        **settings: The other settings of `LPWDConfig` but `decay_timing` and `decay_coupling`: the optimizer
            decides when and how it decays.

    Returns:
        Groups as `LayerPlan.param_groups` makes them.

    Raises:
        ValueError: A value is out of its range, or a parameter has no layer; the message names it.
        TypeError: A setting has no such name.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        >>> optimizer = torch.optim.AdamW(layer_param_groups(model, weight_decay=0.05), lr=1e-3)
        >>> [round(group["weight_decay"], 3) for group in optimizer.param_groups]
        [0.0, 0.017, 0.033, 0.05]
    """
    for name in ("decay_timing", "decay_coupling"):
        if name in settings:
            raise TypeError(f"{name} has no effect on parameter groups: use create_lpwd_optimizer")
    config = LPWDConfig(weight_decay=weight_decay, **settings)
    return plan_layers(model, config).param_groups(model, lr=lr)


def check_keywords(optimizer_cls: Any, optimizer_kwargs: Mapping[str, Any]) -> None:
    """Raises a TypeError for a keyword that neither `LPWDConfig` nor the optimizer has."""
    try:
        taken = inspect.signature(optimizer_cls).parameters
    except (TypeError, ValueError):
        return  # not a class, which `LayerwiseDecay` says
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for name in optimizer_kwargs:
        # An optimizer that takes any keyword would ignore a setting under its former name.
        if name not in taken and (name in FORMER_NAMES or not takes_any):
            known = SETTINGS if name in FORMER_NAMES else [*SETTINGS, *taken]
            raise TypeError(unknown("argument", name, known))
