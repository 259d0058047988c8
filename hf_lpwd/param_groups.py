"""Layer map + rates -> torch parameter groups; the rule of what does not decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any, TypeAlias

from torch import nn

from hf_lpwd.layers import LayerMap
from hf_lpwd.parameters import full_shape, unwrap_name
from hf_lpwd.schedules import Schedule, layer_rates

#: What the user calls exempt: one regular expression or several, searched in parameter names.
NoDecay: TypeAlias = str | Iterable[str]

# Embeddings of position and of special tokens, relative-position biases and the networks that make them,
# and learned temperatures: what timm's models list in no_weight_decay(), under the names of either library.
_EXEMPT_NAMES = re.compile(
    r"""(?:^|[._])(?:
        (?:abs(?:olute)?_)?pos(?:ition(?:al)?)?_?(?:embed(?:ding)?s?|emb)(?:_\w+)? | embed_positions | wpe
      | rel(?:ative)?_?pos(?:ition)?\w* | relative_attention_bias | attention_bias(?:es)?
      | cpb_mlp | continuous_position_bias_mlp
      | (?:cls|class|dist|distill|distillation|mask|reg|register|storage)_(?:token|embedding)s?
      | layer_?scale\w* | logit_scale | temperature
    )(?:\.|$)""",
    re.VERBOSE,
)


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
    names = [name for name, _ in model.named_parameters()]
    if no_decay is not None:
        return _matched_by_user(names, no_decay)
    named_by_model = _named_by_model(model)
    reasons = {}
    for module_name, module in model.named_modules():
        for local_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{local_name}" if module_name else local_name
            reason = _exempt_by_kind(module, local_name, parameter)
            if reason is None and any(fnmatchcase(name, pattern) for pattern in named_by_model):
                reason = "named by the model's no_weight_decay()"
            if reason is None and _EXEMPT_NAMES.search(unwrap_name(name)):
                reason = "position, token or scale embedding"
            if reason is not None:
                reasons[name] = reason
    return {name: reasons[name] for name in names if name in reasons}


def _exempt_by_kind(module: nn.Module, local_name: str, parameter: nn.Parameter) -> str | None:
    if local_name.endswith("bias"):
        return "bias"
    if re.search(r"norm|GRN", type(module).__name__, re.IGNORECASE):
        return "normalization"
    shape = full_shape(parameter)
    if len(shape) <= 1:
        return "one-dimensional"
    # A matrix of one row multiplies its input as any matrix does; a (1, 1, C) parameter scales or shifts.
    multiplies = local_name == "weight" and isinstance(
        module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
    )
    if not multiplies and sum(size > 1 for size in shape) <= 1:
        return "one-dimensional"
    return None


def _named_by_model(model: nn.Module) -> set[str]:
    """Full names and glob patterns from every `no_weight_decay()` in the module tree."""
    patterns = set()
    for prefix, module in model.named_modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            patterns |= {f"{prefix}.{name}" if prefix else name for name in listed()}
    return patterns


def _matched_by_user(names: Sequence[str], no_decay: NoDecay) -> dict[str, str]:
    patterns = [no_decay] if isinstance(no_decay, str) else list(no_decay)
    reasons: dict[str, str] = {}
    for pattern in patterns:
        try:
            matched = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"no_decay pattern {pattern!r} is no regular expression: {error}") from None
        if not matched:
            raise ValueError(
                f"no_decay pattern {pattern!r} matches no parameter; names are like {names[0]!r}"
            )
        reasons |= {name: f"matches no_decay pattern {pattern!r}" for name in matched if name not in reasons}
    return {name: reasons[name] for name in names if name in reasons}


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
