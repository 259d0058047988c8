"""Layer map + rates -> torch parameter groups; the rule of what does not decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

from torch import nn

from hf_lpwd.exemptions import exemptions
from hf_lpwd.layers import LayerMap
from hf_lpwd.parameters import full_shape
from hf_lpwd.schedules import Schedule, layer_rates

#: What the user calls exempt: one regular expression or several, searched in parameter names.
NoDecay: TypeAlias = str | Iterable[str]


def no_decay_reasons(
    model: nn.Module, *, no_decay: NoDecay | None = None, decay_all: bool = False
) -> dict[str, str]:
    """Tells which parameters do not decay, and why.

    Without `no_decay` and `decay_all` these are: biases, everything one-dimensional (also when padded with
    axes of size 1, as are ConvNeXtV2's response normalization and SwinV2's `logit_scale`), the parameters of
    normalization layers, embeddings of position and special tokens with relative-position tables, and
    whatever a module names in its `no_weight_decay()` as timm's models do.

    Args:
        model: Any module.
        no_decay: Regular expressions that take the place of this rule: a parameter is exempt if and only if
            one of them is found in its name.
        decay_all: Nothing is exempt.

    Returns:
        Name -> reason, for the parameters of `model.named_parameters()` that do not decay.

    Raises:
        ValueError: `no_decay` and `decay_all` are both given, or a pattern is no regular expression or
            matches no parameter.
    """
    if decay_all and no_decay is not None:
        raise ValueError(
            f"decay_all=True leaves nothing exempt, but no_decay={no_decay!r} is given: drop one"
        )
    if decay_all:
        return {}
    patterns = () if no_decay is None else (no_decay,) if isinstance(no_decay, str) else tuple(no_decay)
    return exemptions(model, no_decay_patterns=patterns)


def decayed_scalars(model: nn.Module, layer_map: LayerMap, exempt: Mapping[str, str]) -> dict[str, list[int]]:
    """Counts the trainable scalars that decay, by stack and layer index.

    Args:
        model: The module that `layer_map` was made for.
        layer_map: Parameter name -> layer index.
        exempt: Names that do not decay, as `no_decay_reasons` returns them.

    Returns:
        For each stack n + 1 counts, of index 0 to its n.
    """
    counts = {stack: [0] * (n + 1) for stack, n in layer_map.num_layers_by_stack.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in exempt:
            stack, index = layer_map.stack_by_name[name], layer_map.index_by_name[name]
            counts[stack][index] += prod(full_shape(parameter))
    return counts


def stack_rates(
    model: nn.Module,
    layer_map: LayerMap,
    exempt: Mapping[str, str],
    weight_decay: float,
    schedule: Schedule = "linear",
    *,
    match_budget: bool = False,
) -> dict[str, list[float]]:
    """Returns the weight decay of each layer of each stack, as `layer_rates` does for one.

    Args:
        model: The module that `layer_map` was made for.
        layer_map: Parameter name -> layer index.
        exempt: Names that do not decay, as `no_decay_reasons` returns them.
        weight_decay: lambda.
        schedule: See `layer_rates`; a list of rates must fit every stack.
        match_budget: In each stack, the mean rate over its decayed scalars is `weight_decay`.

    Returns:
        For each stack n + 1 rates, of index 0 to its n.

    Raises:
        ValueError: As `layer_rates` does.
    """
    counts = decayed_scalars(model, layer_map, exempt) if match_budget else {}
    return {
        stack: layer_rates(weight_decay, n, schedule, match_budget=counts.get(stack))
        for stack, n in layer_map.num_layers_by_stack.items()
    }


def layer_param_groups(
    model: nn.Module,
    layer_map: LayerMap,
    rates: Mapping[str, Sequence[float]],
    exempt: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Makes the parameter groups of a layer-wise weight decay: one for each distinct rate.

    Frozen parameters are left out, a tied parameter appears once, no group is empty.

    Args:
        model: The module that `layer_map` was made for.
        layer_map: Parameter name -> layer index.
        rates: Stack -> weight decay of each index 0..n, as `stack_rates` returns them.
        exempt: Names that do not decay, as `no_decay_reasons` returns them.

    Returns:
        Groups with `params`, `param_names`, `weight_decay` and `layer_indices` (sorted indices of the layers
        that the group has parameters of), by rising rate; parameters in the model's order.

    Raises:
        ValueError: The model has nothing to train.
    """
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        index = layer_map.index_by_name[name]
        rate = 0.0 if name in exempt else rates[layer_map.stack_by_name[name]][index]
        group = groups.setdefault(
            rate, {"params": [], "param_names": [], "weight_decay": rate, "layer_indices": set()}
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
        group["layer_indices"].add(index)
    if not groups:
        raise ValueError("the model has no trainable parameter (requires_grad is False everywhere)")
    ordered = [groups[rate] for rate in sorted(groups)]
    for group in ordered:
        group["layer_indices"] = sorted(group["layer_indices"])
    return ordered
