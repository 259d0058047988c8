"""Model -> `LayerMap`: the layer index of every parameter, and what decides it.

**The convention** is that of layer-wise learning rates in BEiT, timm and mmpretrain: the stem is 0, the
blocks are 1 to N in the order in which data flows through them, the final norm, the pooler and the head are
n = N + 1. It differs from what timm's `group_matcher` gives in three points: the final norm is N + 1, also
in ViT and Swin, where timm counts it with the last block; a downsampling layer has the index of the block
that it feeds, wherever a library registers it; and blocks count across stages, also where timm makes one
group of a stage (PVTv2, MViTv2, GCViT, EfficientFormer and others).

**Why neither library is asked.** Only timm's models have a `group_matcher`, not all of them, and one that
matches nothing puts a parameter into the last layer. transformers' `_no_split_modules` says what has to stay
on one device: ViT lists its embeddings, Swin its stages, PVT nothing.

**The search**, `find_places`, step by step, each step a file, on a network of two stages:

>>> from collections import OrderedDict
>>> from hf_lpwd.layer_stacks import find_blocks, find_stacks
>>> def block(width):
...     return nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=16)
>>> network = nn.Sequential(OrderedDict(
...     embed=nn.Linear(4, 8),
...     stage1=nn.Sequential(block(8)),
...     downsample=nn.Linear(8, 16),
...     stage2=nn.Sequential(block(16), block(16)),
...     norm=nn.LayerNorm(16),
...     head=nn.Linear(16, 3),
... ))

1. `layer_blocks`: the blocks, the innermost modules that repeat in a list such as a `Sequential`.

>>> find_blocks(network)
['stage1.0', 'stage2.0', 'stage2.1']

2. `layer_stacks`: the blocks that count together, those of a tower, an encoder or a decoder; here all.

>>> find_stacks(network, Order(network))
[Stack(name='', path='', blocks=['stage1.0', 'stage2.0', 'stage2.1'])]

3. `layer_walk`: the modules in the order of registration, which is nearly always the order in which they
   run. Names, classes and widths tell where it is not. Where they tell nothing, `layer_order` asks a forward
   pass on the meta device. If the model's inputs are not known, the order of registration holds; where that
   may be wrong, a warning names the parameter. At the end, `place_outside`: what is in no stack.

>>> for name, place in layer_index_map(network).places.items():
...     if name in ("embed.weight", "downsample.weight", "norm.weight", "head.weight") or "norm2.w" in name:
...         print(place.layer, name, "-", place.module)
0 embed.weight - stem
1 stage1.0.norm2.weight - block stage1.0
2 downsample.weight - feeds block stage2.0
2 stage2.0.norm2.weight - block stage2.0
3 stage2.1.norm2.weight - block stage2.1
4 norm.weight - final norm
4 head.weight - head
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from torch import nn
from torch.nn.parameter import UninitializedParameter

from hf_lpwd.layer_order import Order
from hf_lpwd.layer_stacks import Place, find_stacks
from hf_lpwd.layer_walk import Walk, place_outside
from hf_lpwd.parameters import unwrap_name


@dataclass(frozen=True)
class LayerMap:
    """The layer of each parameter of a model.

    Towers, and an encoder and its decoder, are separate stacks: each counts from 0 and has its own n. A model
    that is one stack calls it ``""``.

    Attributes:
        places: Parameter name -> `Place`: its stack, its layer (0 to n of the stack), and the module that
            decides it, such as ``"block vit.layers.3"``.
        num_layers_by_stack: Stack -> n, the index of its head.

    Examples:
        >>> layer_map = layer_index_map(nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)]))
        >>> layer_map.places["1.weight"], layer_map.num_layers
        (Place(stack='', layer=1, module='block 1'), 3)
    """

    places: dict[str, Place]
    num_layers_by_stack: dict[str, int]

    @property
    def num_layers(self) -> int:
        """n, the index of the head; the largest where there are several stacks."""
        return max(self.num_layers_by_stack.values())


#: What a user may give in place of detection: a map, or rules as `layer_index_map` describes them.
Layers: TypeAlias = LayerMap | Mapping[str, int | str]


def layer_index_map(model: nn.Module, layer_map: Layers | None = None) -> LayerMap:
    r"""Gives each parameter of a model its layer index.

    Without `layer_map` the repeated blocks are found in the module tree. Where the tree does not tell when a
    module runs, a forward pass on the meta device does, with inputs made up from the configuration; it leaves
    the model as it is. A tied parameter has the index of its first place.

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
        layer_map: A `LayerMap`, which is checked, or rules: parameter name, or regular expression that has
            to match the whole name (without wrappers' prefixes) -> an index; ``"stem"``, 0; ``"head"``, n; or
            ``"block"``: the integers that the expression's groups capture, sorted, number the blocks from 1.
            A name goes before an expression, and an earlier expression before a later one.

    Returns:
        The map of all names of `model.named_parameters()`.

    Raises:
        ValueError: The model has no repeated blocks, a rule is wrong or matches nothing, or a parameter has
            no index; the message names it.

    Warns:
        UserWarning: A parameter's place could not be found, and the order of registration was taken.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> rules = {r"0\..*": "stem", r"([12])\..*": "block", r".*": "head"}
        >>> [place.layer for place in layer_index_map(model, rules).places.values()]
        [0, 0, 1, 1, 2, 2, 3, 3]
    """
    names = [name for name, _ in model.named_parameters()]
    if not names:
        raise ValueError(f"{type(model).__name__} has no parameters")
    lazy = [name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise ValueError(f"{lazy[0]} has no shape yet: run a forward pass first")
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in model.parameters()):
        raise ValueError(
            "FSDP1 has flattened the parameters, so weights cannot be told from biases: use FSDP2 "
            "(fsdp_version: 2), or make the optimizer before the model is wrapped"
        )
    if isinstance(layer_map, LayerMap):
        return _checked(layer_map, names)
    return LayerMap(*find_places(model)) if layer_map is None else _map_by_rules(names, layer_map)


def find_places(model: nn.Module) -> tuple[dict[str, Place], dict[str, int]]:
    """Returns name -> place for `model.named_parameters()`, and stack -> n.

    Raises:
        ValueError: There are no repeated blocks.
    """
    order = Order(model)
    stacks = find_stacks(model, order)
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no repeated stack of blocks (a ModuleList or Sequential that holds "
            "several modules of one class): give a layer_map, such as "
            r"{r'stem\..*': 'stem', r'body\.(\d+)\..*': 'block', '.*': 'head'}"
        )
    walks = {stack.name: Walk(model, stack, order) for stack in stacks}
    places = {name: place for walk in walks.values() for name, place in walk.places()}
    places |= place_outside(model, places, walks, order)
    # A tied parameter has several names here, and its first place.
    first: dict[int, Place] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.get(id(parameter), places[name])
        first[id(parameter)] = min(known, places[name], key=attrgetter("layer"))
    order.warn()
    n = {name: walk.n for name, walk in walks.items()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters()}, n


def _checked(layer_map: LayerMap, names: Sequence[str]) -> LayerMap:
    """The map under the names that the parameters have in this model, which may be wrapped or not."""
    known = {unwrap_name(name): place for name, place in layer_map.places.items()} | layer_map.places
    places = {}
    for name in names:
        place = known.get(name, known.get(unwrap_name(name)))
        if place is None:
            raise ValueError(f"the layer map has no parameter {name!r}: it was made for another model")
        n = layer_map.num_layers_by_stack.get(place.stack)
        if n is None or not 0 <= place.layer <= n:
            raise ValueError(
                f"the layer map puts {name!r} at index {place.layer} of stack {place.stack!r}, but its "
                f"num_layers_by_stack is {layer_map.num_layers_by_stack}"
            )
        places[name] = place
    return (
        layer_map
        if places.keys() <= layer_map.places.keys()
        else LayerMap(places, layer_map.num_layers_by_stack)
    )


def _map_by_rules(names: Sequence[str], rules: Mapping[str, int | str]) -> LayerMap:
    for rule, value in rules.items():
        is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not is_index and value not in ("stem", "block", "head"):
            raise ValueError(
                f"layer_map[{rule!r}] is {value!r}: it must be an index >= 0, 'stem', 'block' or 'head'"
            )
    matched = _first_matches({name: unwrap_name(name) for name in names}, rules)
    block_of = {
        name: _captured(rule, match) for name, (rule, match) in matched.items() if rules[rule] == "block"
    }
    number = {key: i for i, key in enumerate(sorted(set(block_of.values())), start=1)}
    given = [value for value in rules.values() if isinstance(value, int)]
    n = len(number) + 1 if number else max(given, default=0) + ("head" in rules.values())
    if n < 1:
        raise ValueError("layer_map gives every parameter index 0: there must be at least a stem and a head")
    places = {}
    for name, (rule, _) in matched.items():
        value = rules[rule]
        if isinstance(value, int):
            index = value
        else:
            index = number[block_of[name]] if value == "block" else {"stem": 0, "head": n}[value]
        if index > n:
            raise ValueError(f"layer_map[{rule!r}] is {value}, but an index must be 0 (stem) to {n} (head)")
        places[name] = Place("", index, f"rule {rule!r}")
    return LayerMap(places, {"": n})


def _first_matches(
    names: Mapping[str, str], rules: Mapping[str, int | str]
) -> dict[str, tuple[str, re.Match[str] | None]]:
    """Name -> the rule that decides on it, with its match if it is an expression.

    `names` gives each parameter's name without wrappers' prefixes; a rule may match either.
    """
    matched: dict[str, tuple[str, re.Match[str] | None]] = {}
    for name, plain in names.items():
        if exact := next((given for given in (name, plain) if given in rules), None):
            matched[name] = exact, None
    for rule in rules:
        if rule in names or rule in names.values():
            continue
        try:
            expression = re.compile(rule)
        except re.error as error:
            raise ValueError(f"layer_map: {rule!r} is not a regular expression: {error}") from None
        matches = {n: expression.fullmatch(plain) or expression.fullmatch(n) for n, plain in names.items()}
        if not any(matches.values()):
            raise ValueError(
                f"layer_map: {rule!r} matches no parameter; it has to match a whole name, such as "
                f"{next(iter(names))!r}"
            )
        matched = {name: (rule, match) for name, match in matches.items() if match} | matched
    for name in names:
        if name not in matched:
            raise ValueError(f"layer_map has no rule for parameter {name!r}: add one, or a last rule '.*'")
    return {name: matched[name] for name in names}


def _captured(rule: str, match: re.Match[str] | None) -> tuple[int, ...]:
    groups = match.groups() if match else ()
    if not groups or not all(text and text.isdecimal() for text in groups):
        raise ValueError(
            f"layer_map[{rule!r}] is 'block', so its groups have to capture the block's number, as in "
            r"'layers\.(\d+)\..*'"
            + (f"; in {match.string!r} they capture {groups}" if match and groups else "")
        )
    return tuple(map(int, groups))
