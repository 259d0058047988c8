"""The optimizer that a `transformers.Trainer` has found for its arguments, with layer-wise weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from hf_lpwd.base_optimizer import has_fused_kernel
from hf_lpwd.config import SETTINGS, LPWDConfig
from hf_lpwd.factory import check_keywords, create_lpwd_optimizer, optimizer_from_plan
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import LayerPlan, plan_layers

logger = logging.get_logger(__name__)

#: A class of optimizers and its keyword arguments.
ClassAndKwargs = tuple[type[torch.optim.Optimizer], dict[str, Any]]


def lpwd_optimizer_factory() -> Callable[..., LayerwiseDecay]:
    """Makes layer-wise weight decay usable in a stock `transformers.Trainer`.

    ``Trainer(model, args, optimizer_cls_and_kwargs=(lpwd_optimizer_factory, {"args": args}))``

    The Trainer calls it as ``lpwd_optimizer_factory()(model, **kwargs)``. With `args`, its training
    arguments, the learning rate, `weight_decay` and the optimizer are read from `args` at each call, so a
    hyperparameter search varies them. Further keyword arguments are settings of `LPWDConfig`,
    `optimizer_cls` and its arguments. Without `args`, `lr` and `weight_decay` must be among them, and those
    of the Trainer have no effect, as a warning says.

    Returns:
        A function from the model and these keyword arguments to the optimizer. It raises a ValueError if a
        setting stands there that `args` has too, and what `create_lpwd_optimizer` raises.

    Examples:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
        >>> config = ViTConfig(**sizes, num_hidden_layers=2, image_size=4, patch_size=2)
        >>> model = ViTForImageClassification(config)
        >>> args = TrainingArguments("out", weight_decay=0.05)
        >>> lpwd = (lpwd_optimizer_factory, {"args": args, "decay_timing": "rwd"})
        >>> Trainer(model, args, optimizer_cls_and_kwargs=lpwd).create_optimizer()
        LayerwiseDecay(AdamW, rwd, coupling lr: lr 5e-05, weight_decay 0 to 0.05, 4 groups)
    """
    return _create_for_trainer


def _create_for_trainer(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer] | None = None,
    *,
    args: TrainingArguments | None = None,
    **given: Any,
) -> LayerwiseDecay:
    if args is None:
        logger.warning_once(
            f"lpwd_optimizer_factory uses lr={given.get('lr')} and weight_decay={given.get('weight_decay')} "
            "of optimizer_cls_and_kwargs; learning_rate and weight_decay of the training arguments have no "
            'effect, not even in a hyperparameter search: pass {"args": args} instead of them'
        )
        return create_lpwd_optimizer(model, optimizer_cls or torch.optim.AdamW, **given)
    for name in given:
        if name in ("lr", "weight_decay") or (name in SETTINGS and hasattr(args, name)):
            raise ValueError(
                f"{name} is in optimizer_cls_and_kwargs as well as args: set it in the arguments"
            )
    settings = {name: given.pop(name) for name in SETTINGS if name in given}
    plan = plan_layers(model, LPWDConfig.from_args(args, **settings))
    warn_if_nothing_decays(plan.config)
    kwargs: dict[str, Any] = {"lr": args.learning_rate}
    if optimizer_cls is None:
        optimizer_cls, kwargs = base_optimizer(args, Trainer.get_optimizer_cls_and_kwargs(args, model))
    check_keywords(optimizer_cls, given)
    return optimizer_from_plan(plan, model, optimizer_cls, **{**kwargs, **given})


def warn_if_nothing_decays(config: LPWDConfig) -> None:
    """Says that `weight_decay` was left at the default of TrainingArguments, which is 0."""
    if config.weight_decay == 0.0 and not config.decay_by_pattern:
        logger.warning("weight_decay is 0, so that nothing decays: set it, e.g. to 0.05")


def base_optimizer(args: TrainingArguments, found: ClassAndKwargs) -> ClassAndKwargs:
    """Returns the base optimizer that a Trainer found for its `optim`, without its weight decay.

    `optimizer_dict` may be a list of parameter groups, as in sentence-transformers.

    Raises:
        ValueError: The optimizer makes its own parameter groups, or has another weight decay.
    """
    optimizer_cls, kwargs = found[0], dict(found[1])
    # Some of Trainer's handlers pass args.weight_decay on, which the groups carry already.
    own_rate = kwargs.pop("weight_decay", args.weight_decay)
    if own_rate != args.weight_decay:
        raise ValueError(f"weight_decay={own_rate} is in optim_args: set weight_decay in the arguments")
    if kwargs.keys() & {"params", "model"} or not isinstance(kwargs.get("optimizer_dict", []), list):
        raise ValueError(
            f"optim {getattr(args.optim, 'value', args.optim)!r} makes its own parameter groups, so it "
            "cannot have rates by layer: use an optimizer that takes groups, such as adamw_torch_fused"
        )
    # The kernel is the one that Trainer would use: adamw_torch and sgd are not fused.
    return optimizer_cls, {"fused": None, **kwargs} if has_fused_kernel(optimizer_cls, ()) else kwargs


def regrouped(
    plan: LayerPlan, model: nn.Module, groups: Iterable[dict[str, Any]], *, lr: float
) -> list[dict[str, Any]]:
    """Gives the plan's rates to the parameters that a Trainer has grouped itself.

    A group's own `lr` is kept: it is sentence-transformers' `learning_rate_mapping`. Parameters outside of
    the model, such as a loss has, stay as they are.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_lr: dict[float, list[tuple[str, nn.Parameter]]] = {}
    outside = []
    for number, group in enumerate(groups):
        inside = [(names[p], p) for p in group["params"] if p in names]
        by_lr.setdefault(group.get("lr", lr), []).extend(inside)
        rest = [p for p in group["params"] if p not in names]
        if rest:
            named = [f"outside the model.{number}.{i}" for i in range(len(rest))]
            outside.append({**group, "params": rest, "param_names": named})
    planned = [{"lr": own, **g} for own, named in by_lr.items() for g in plan.groups_of(named, lr=own)]
    return [*planned, *outside]
