"""`create_lpwd_optimizer`: a model in, its optimizer with layer-wise weight decay out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_lpwd.base_optimizer import has_fused_kernel
from hf_lpwd.config import LPWDConfig, check_timing
from hf_lpwd.layers import Layers, layer_index_map
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.param_groups import NoDecay, no_decay_reasons, stack_rates
from hf_lpwd.param_groups import layer_param_groups as _old
from hf_lpwd.plan import plan_layers
from hf_lpwd.schedules import Schedule


def create_lpwd_optimizer(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW,
    *,
    lr: float,
    weight_decay: float,
    timing: str = "pwd",
    schedule: Schedule = "linear",
    coupling: str = "lr",
    match_budget: bool = False,
    decay_all: bool = False,
    no_decay: NoDecay | None = None,
    layer_map: Layers | None = None,
    **optimizer_kwargs: Any,
) -> LayerwiseDecay:
    """Creates an optimizer whose weight decay depends on the layer and on the moment of the step.

    The defaults are the paper's method, *layer-wise pre-weight decay*: the rate rises linearly from 0 in the
    stem to `weight_decay` in the head, and is applied before the gradient is taken. In a training loop of
    your own, call ``optimizer.train()`` before each forward pass; `transformers.Trainer` does.

    Args:
        model: Any timm or transformers model, or any module with a repeated stack of blocks. Parameters with
            `requires_grad=False` are left out.
        optimizer_cls: Class of the base optimizer; must take `lr`.
        lr: Learning rate.
        weight_decay: lambda, the rate that `schedule` distributes over the layers.
        timing: ``"l2"``, ``"wd"``, ``"rwd"`` or ``"pwd"``; see `LayerwiseDecay`.
        schedule: See `layer_rates`.
        coupling: ``"lr"``, or ``"independent"`` of the learning rate.
        match_budget: Scale the rates so that their mean over all decayed scalars is `weight_decay`.
        decay_all: Decay biases, norms and embeddings too.
        no_decay: Regular expressions that take the place of the rule of `no_decay_reasons`.
        layer_map: In place of `layer_index_map(model)`: a map, or rules as that function's `layers` takes.
        **optimizer_kwargs: Passed to `optimizer_cls`. `fused=True` is the default for torch's Adam, AdamW and
            SGD on devices that have the kernel.

    Returns:
        The optimizer, with one parameter group for each distinct rate.

    Raises:
        ValueError: A value is out of its range, or a parameter has no layer; the message names it.
        TypeError: `optimizer_cls` does not take one of `optimizer_kwargs`, or cannot be wrapped.

    Source: *Layer-wise Pre-weight Decay*, OpenReview 0GZ1Bq4Tfr.
    """
    check_timing(timing, coupling)
    layers = layer_index_map(model, layer_map)
    exempt = no_decay_reasons(model, no_decay=no_decay, decay_all=decay_all)
    rates = stack_rates(model, layers, exempt, weight_decay, schedule, match_budget=match_budget)
    groups = _old(model, layers, rates, exempt)
    params = (parameter for group in groups for parameter in group["params"])
    if not optimizer_kwargs.keys() & {"fused", "foreach"} and has_fused_kernel(optimizer_cls, params):
        optimizer_kwargs["fused"] = True
    return LayerwiseDecay(groups, optimizer_cls, timing=timing, coupling=coupling, lr=lr, **optimizer_kwargs)


def layer_param_groups(
    model: nn.Module, *, weight_decay: float, lr: float | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Makes parameter groups with a weight decay by layer, for any torch optimizer.

    Args:
        model: See `plan_layers`.
        weight_decay: See `LPWDConfig`.
        lr: Learning rate of the head; needed under `layer_lr_decay`.
        **settings: The other settings of `LPWDConfig`. The optimizer decides when and how it decays, so
            `decay_timing` and `decay_coupling` are not taken.

    Returns:
        See `LayerPlan.param_groups`.

    Raises:
        ValueError: As `plan_layers` does.
        TypeError: As `plan_layers` does, or a setting has no such name.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        >>> [group["weight_decay"] for group in layer_param_groups(model, weight_decay=0.3)]
        [0.0, 0.1, 0.2, 0.3]
    """
    for name in ("decay_timing", "decay_coupling"):
        if name in settings:
            raise TypeError(f"{name} has no effect on parameter groups: use create_lpwd_optimizer")
    config = LPWDConfig.from_kwargs(weight_decay=weight_decay, **settings)
    return plan_layers(model, config).param_groups(model, lr=lr)


def lpwd_optimizer_factory() -> Callable[..., LayerwiseDecay]:
    """Makes `create_lpwd_optimizer` usable in a stock `transformers.Trainer`.

    ``Trainer(..., optimizer_cls_and_kwargs=(lpwd_optimizer_factory, {"lr": 1e-3, "weight_decay": 0.05}))``

    The Trainer calls it as ``lpwd_optimizer_factory()(model, **kwargs)``. Both `lr` and `weight_decay` have
    to stand in the keyword arguments: the Trainer passes its own to no factory.
    """
    return create_lpwd_optimizer
