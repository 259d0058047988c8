"""A plan beside an optimizer that exists: groups to add, and whether its groups are as planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hf_lpwd.plan import LayerPlan


def added_groups(
    plan: LayerPlan, param_group: Mapping[str, Any], *, lr: float | None = None
) -> list[dict[str, Any]]:
    """Divides a group that is to be added to an optimizer into groups with a plan's rates.

    Args:
        plan: From `plan_layers`.
        param_group: A group with named parameters. Its own settings, such as `lr`, replace the plan's.
        lr: Learning rate of the head; needed if `layer_lr_decay` is below 1.

    Raises:
        ValueError: The parameters have no names, or names that are not in the plan.
    """
    members = list(param_group["params"])
    if names := param_group.get("param_names"):
        members = list(zip(names, members, strict=True))
    if not all(isinstance(member, tuple) for member in members):
        raise ValueError(
            "the layers of added parameters are found by their names: give "
            "{'params': [(name, p) for name, p in model.named_parameters() if ...]}"
        )
    own = {key: value for key, value in param_group.items() if key not in ("params", "param_names")}
    return [{**group, **own} for group in plan.groups_of(members, lr=lr)]


def plan_differences(
    plan: LayerPlan, model: nn.Module, param_groups: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Compares an optimizer's parameter groups with a plan.

    Args:
        plan: From `plan_layers`.
        model: The model that the plan was made for, wrapped or not.
        param_groups: The groups. A `weight_decay` that a schedule has changed since they were made does not
            count.

    Returns:
        A text for another decay timing or coupling, and for each parameter that has another weight decay or
        learning-rate scale, that is missing, or that is not in the plan. Nothing if all is as planned.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    differences = []
    for group in param_groups:
        for key in ("decay_timing", "decay_coupling"):
            if key in group and group[key] != getattr(plan.config, key):
                differences.append(f"{key} is {group[key]!r}, planned {getattr(plan.config, key)!r}")
        settings = group.get("initial_weight_decay", group["weight_decay"]), group.get("layer_lr_scale", 1.0)
        of_group = group.get("param_names") or [
            names.get(id(p), "an unknown parameter") for p in group["params"]
        ]
        found |= dict.fromkeys(map(plan.known_name, of_group), settings)
    trained = {plan.known_name(name) for name, p in model.named_parameters() if p.requires_grad}
    differences += [f"{name} is not in the optimizer" for name in sorted(trained - found.keys())]
    for name, (rate, lr_scale) in found.items():
        if name not in plan:
            differences.append(f"{name} is not in the plan")
        elif rate != plan[name].trained_rate:
            differences.append(f"{name} has weight_decay {rate:g}, planned {plan[name].trained_rate:g}")
        elif lr_scale != plan[name].lr_scale:
            differences.append(f"{name} has layer_lr_scale {lr_scale:g}, planned {plan[name].lr_scale:g}")
    return list(dict.fromkeys(differences))
