"""Model -> `LayerMap`: the layer index of every parameter, and why.

The convention is that of layer-wise learning rates in BEiT, timm and mmpretrain: the stem is 0, the blocks
are 1 to N in the order in which data flows through them, the final norm, the pooler and the head are
n = N + 1. A downsampling layer has the index of the block that it feeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TypeAlias

from torch import nn

from hf_lpwd.layer_assignment import map_by_structure
from hf_lpwd.layer_map import LayerMap, full_shape
from hf_lpwd.layer_rules import map_by_rules

#: What a user may give in place of detection: a map, or rules as `layer_index_map` describes them.
Layers: TypeAlias = LayerMap | Mapping[str, int | str]


def layer_index_map(model: nn.Module, layers: Layers | None = None) -> LayerMap:
    r"""Gives each parameter of a model its layer index.

    Without `layers` the repeated blocks are found in the module tree; no forward pass is made, and weights
    may be on the meta device. A tied parameter has the index of its first place.

    Towers (CLIP), and an encoder and its decoder (T5, Whisper), are separate stacks, each with its own n. So
    are the backbone, the encoder and the decoder of a detector or segmenter (DETR, Mask2Former): its
    backbone keeps the rates that it has in a classifier, as with the layer-wise learning rates of BEiT and
    MMDetection. What stands between two stacks belongs to one of them: embeddings, queries and input
    projections are the stem of the stack that they feed; projections and heads are the head of the one
    before. A stack may lack either: the heads of a DETR model are those of its decoder.

    To decay one tower alone, freeze the other (``requires_grad_(False)``), or give all of the other index 0
    by rules.

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
    sizes = {name: prod(full_shape(parameter)) for name, parameter in model.named_parameters()}
    if not sizes:
        raise ValueError(f"{type(model).__name__} has no parameters")
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in model.parameters()):
        raise ValueError(
            "FSDP1 has flattened the parameters, so weights cannot be told from biases: use FSDP2 "
            "(fsdp_version: 2), or make the optimizer before the model is wrapped"
        )
    if isinstance(layers, LayerMap):
        _check_covers(layers, sizes)
        return layers
    return map_by_structure(model, sizes) if layers is None else map_by_rules(sizes, layers)


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
