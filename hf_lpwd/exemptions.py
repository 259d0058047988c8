"""Which parameters do not decay, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from hf_lpwd.parameters import full_shape, unwrap_name

# Embeddings of position and of special tokens, relative-position biases and the networks that make them,
# and learned temperatures: what timm's models list in no_weight_decay(), under the names of either library.
_EXEMPT_NAMES = re.compile(
    r"""(?:^|[._])(?:
        (?:abs(?:olute)?_)?pos(?:ition(?:al)?)?_?(?:embed(?:ding)?s?|emb)(?:_\w+)? | embed_positions | wpe
      | (?:abs(?:olute)?_)?pos(?:ition(?:al)?)?_?enc(?:oding)?s?(?:\.weight)?$
      | rel(?:ative)?_?pos(?:ition)?\w* | relative_attention_bias | attention_bias(?:es)?
      | cpb_mlp | continuous_position_bias_mlp
      | (?:cls|class|dist|distill|distillation|mask|reg|register|storage)_(?:token|embedding)s?
      | layer_?scale\w* | logit_scale | temperature
    )(?:\.|$)""",
    re.VERBOSE,
)


def exemptions(
    model: nn.Module, *, no_decay_patterns: Iterable[str] = (), decay_all: bool = False
) -> dict[str, str]:
    """Returns the parameters that do not decay, and why.

    Without `no_decay_patterns` and `decay_all` these are: biases, everything one-dimensional (also when
    padded with axes of size 1, as are ConvNeXtV2's response normalization and SwinV2's `logit_scale`), the
    parameters of normalization layers, embeddings of position and special tokens, relative-position tables,
    what a module names in its `no_weight_decay()` as timm's models do, and parameters that carry
    `_no_weight_decay`.

    Args:
        model: Any module.
        no_decay_patterns: Regular expressions that replace this rule: a parameter is exempt if and only if
            one of them is found in its name.
        decay_all: Nothing is exempt.

    Returns:
        Name -> reason, for the parameters of `model.named_parameters()` that do not decay.
    """
    if decay_all:
        return {}
    names = [name for name, _ in model.named_parameters()]
    if patterns := {pattern: f"matches no_decay_pattern {pattern!r}" for pattern in no_decay_patterns}:
        return first_matches("no_decay_pattern", patterns, names)
    named_by_model = _named_by_model(model)
    reasons = {}
    for module_name, module in model.named_modules():
        for local_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{local_name}" if module_name else local_name
            if (reason := _exempt_by_kind(module, local_name, parameter)) is not None:
                reasons[name] = reason
            elif any(fnmatchcase(name, pattern) for pattern in named_by_model):
                reasons[name] = "named by the model's no_weight_decay()"
            elif _EXEMPT_NAMES.search(unwrap_name(name)):
                reasons[name] = "position, token or scale embedding"
    return {name: reasons[name] for name in names if name in reasons}


def _exempt_by_kind(module: nn.Module, local_name: str, parameter: nn.Parameter) -> str | None:
    if getattr(parameter, "_no_weight_decay", False):
        return "marked with _no_weight_decay"
    if local_name.endswith("bias"):
        return "bias"
    multiplies = local_name == "weight" and isinstance(
        module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
    )
    # A linear layer stays one if its class is called NormedLinear.
    if not multiplies and re.search(r"norm|GRN", type(module).__name__, re.IGNORECASE):
        return "normalization"
    shape = full_shape(parameter)
    if len(shape) <= 1:
        return "one-dimensional"
    # A matrix of one row multiplies its input as any matrix does; a (1, 1, C) parameter scales or shifts.
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


def first_matches(what: str, patterns: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Returns the value of the first pattern that is found in each name, with or without wrappers' prefixes.

    Raises:
        ValueError: A pattern of the setting `what` matches no name.
    """
    found: dict[str, str] = {}
    names = list(names)
    for pattern, value in patterns.items():
        matched = [n for n in names if re.search(pattern, n) or re.search(pattern, unwrap_name(n))]
        if not matched:
            raise ValueError(f"{what} {pattern!r} matches no parameter; names are like {names[0]!r}")
        found = {**dict.fromkeys(matched, value), **found}
    return {name: found[name] for name in names if name in found}
