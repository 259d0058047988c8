"""Model -> `LayerMap`: the layer index of every parameter, and why.

The convention is that of layer-wise learning rates in BEiT, timm and mmpretrain: the stem is 0, the blocks
are 1 to N in the order in which data flows through them, the final norm, the pooler and the head are
n = N + 1. A downsampling layer has the index of the block that it feeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from torch import nn

from hf_lpwd.layer_assignment import assign_by_structure
from hf_lpwd.layer_detection import unwrap_name
from hf_lpwd.layer_rules import assign_by_rules

#: What a user may give in place of detection: a map, or rules as `layer_index_map` describes them.
Layers: TypeAlias = "LayerMap | Mapping[str, int | str]"


@dataclass(frozen=True)
class LayerMap:
    """The layer index of each parameter of a model.

    Towers, and an encoder and its decoder, are separate stacks: each counts from 0 and has its own n. A model
    that is one stack calls it ``""``.

    Attributes:
        index_by_name: Parameter name -> index, 0 to n of its stack.
        num_layers_by_stack: Stack -> n, the index of its head.
        stack_by_name: Parameter name -> stack.
        reason_by_name: Parameter name -> short reason, such as ``"block vit.layers.3"``.
        size_by_name: Parameter name -> number of scalars.
    """

    index_by_name: dict[str, int]
    num_layers_by_stack: dict[str, int]
    stack_by_name: dict[str, str]
    reason_by_name: dict[str, str] = field(default_factory=dict)
    size_by_name: dict[str, int] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """n, the index of the head; the largest where there are several stacks."""
        return max(self.num_layers_by_stack.values())

    def __str__(self) -> str:
        rows = [("layer", "what", "parameters")]
        for stack in self.num_layers_by_stack:
            names = [name for name in self.index_by_name if self.stack_by_name[name] == stack]
            names.sort(key=self.index_by_name.__getitem__)
            for index, layer in groupby(names, key=self.index_by_name.__getitem__):
                members = list(layer)
                what = ", ".join(dict.fromkeys(self.reason_by_name.get(name, name) for name in members))
                size = sum(self.size_by_name.get(name, 0) for name in members)
                rows.append((f"{stack} {index}".strip(), what, f"{size:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{layer:<{widths[0]}}  {what:<{widths[1]}}  {size:>{widths[2]}}" for layer, what, size in rows
        )


def layer_index_map(model: nn.Module, layers: Layers | None = None) -> LayerMap:
    r"""Gives each parameter of a model its layer index.

    Without `layers` the repeated blocks are found in the module tree; no forward pass is made, and weights
    may be on the meta device. A tied parameter has the index of its first place.

    Args:
        model: Any transformers or timm model, or any module with a repeated stack of blocks; also inside of
            DDP, `torch.compile` or PEFT.
        layers: A `LayerMap`, which is checked, or rules: parameter name, or regular expression that has to
            match the whole name (without wrappers' prefixes) -> an index; ``"stem"``, 0; ``"head"``, n; or
            ``"block"``: the integers that the expression's groups capture, sorted, number the blocks from 1.
            A name goes before an expression, and an earlier expression before a later one.

    Returns:
        The map of all names of `model.named_parameters()`.

    Raises:
        ValueError: The model has no repeated blocks, a rule is wrong or matches nothing, or a parameter has
            no index; the message names it.

    Examples:
        >>> layer_index_map(model, {r"embed\..*": "stem", r"layers\.(\d+)\..*": "block", r".*": "head"})
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if not sizes:
        raise ValueError(f"{type(model).__name__} has no parameters")
    if isinstance(layers, LayerMap):
        _check_covers(layers, sizes)
        return layers
    if layers is not None:
        return LayerMap(*assign_by_rules({name: unwrap_name(name) for name in sizes}, layers), sizes)
    return LayerMap(*assign_by_structure(model), sizes)


def _check_covers(layer_map: LayerMap, names: Mapping[str, int]) -> None:
    for name in names:
        if name not in layer_map.index_by_name or name not in layer_map.stack_by_name:
            raise ValueError(f"the layer map has no parameter {name!r}: it was made for another model")
        index, stack = layer_map.index_by_name[name], layer_map.stack_by_name[name]
        n = layer_map.num_layers_by_stack.get(stack)
        if n is None:
            raise ValueError(
                f"the layer map puts {name!r} in stack {stack!r}, but num_layers_by_stack lacks it"
            )
        if not 0 <= index <= n:
            raise ValueError(f"the layer map gives {name!r} index {index}, but it must be 0 to {n}")
