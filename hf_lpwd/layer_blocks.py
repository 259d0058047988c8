"""Finds a model's repeated blocks in its module tree: no forward pass, no module paths, no library.

A *list* is a `ModuleList`, `Sequential` or `ModuleDict`, or numbered attributes (layer1, layer2). Its
elements are *units*. A *block* is the innermost unit that repeats: what stands around blocks is a stage, what
repeats inside of one (experts, branches) is its part. The steps:

1. `_Search._units`: the lists of each module, without stems, downsampling layers, and what is too small.
2. `_twins`: the kinds of unit that are blocks for sure, because a list holds two of the same shape. The
   stages of a list differ in shape.
3. `_Search.blocks_in`: from the outside in, the units of these kinds; then what else stands in their lists.

In the example of `hf_lpwd.layers` the lists are the network with the units stage1 and stage2, stage1 with one
encoder layer, and stage2 with two. These two make encoder layers the kind that is sure, also in stage1.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, TypeAlias

from torch import nn

from hf_lpwd.parameters import full_shape

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
#: Class of a module; of a plain container, the kinds of its elements too.
Kind: TypeAlias = str | tuple[Any, ...]

# Convolutional stems, and the backbones of hybrid ViTs, are lists of blocks too, but count as the stem.
STEM_NAME = re.compile(r"(?<!sy)stem|embed(?!_out)", re.IGNORECASE)
DOWNSAMPLE_NAME = re.compile(r"down_?samp|patch_?merg|patch_embed|transition|reduction", re.IGNORECASE)
# Models like DETR call their heads embeddings, and what embeds their queries' positions (reference points)
# a head.
HEAD_NAME = re.compile(
    r"(?!query_pos|ref(?:erence)?_)(?:.*_)?(?:head|heads|classifier|pooler|score|logit\w*)(?:_.*)?|(?:.*_)?(?:class|bbox)_embed",
    re.IGNORECASE,
)
INPUT_NAME = re.compile(
    rf"{STEM_NAME.pattern}|input_proj|quer(?:y|ies)|ref(?:erence)?_(?:point|anchor)|prompt", re.IGNORECASE
)
NORM_NAME = re.compile(r"norm|(?:^|\.)ln_?\w*\.(?:weight|bias)$", re.IGNORECASE)
_NO_BLOCKS = re.compile(rf"{STEM_NAME.pattern}|{DOWNSAMPLE_NAME.pattern}|pos_?enc", re.IGNORECASE)
# Lists of these run in parallel, or each element inside of a block.
_PARTS_NAME = re.compile(r"(?:^|_)(?:experts?|mlps|reassemble_stage)$")
_STAGE_NAME = re.compile(r"stage", re.IGNORECASE)
_NOTHING = re.compile(r"(?!)")
_IN_HEAD = re.compile(r"(?:^|[._])(?:heads?|upscale_block)\.", re.IGNORECASE)
# What transformers and torch call a transformer's layer: a block also where it stands alone, as in RT-DETR.
_LAYER_CLASS = re.compile(r"(?:En|De)coderLayer$")


def join(path: str, name: str) -> str:
    """Path of the child `name` of the module at `path`."""
    return f"{path}.{name}" if path else name


def is_called(pattern: re.Pattern[str], name: str, module: nn.Module) -> bool:
    """Tells whether `pattern` is found in an attribute's name or in its class's."""
    return pattern.search(name) is not None or pattern.search(type(module).__name__) is not None


def find_blocks(model: nn.Module) -> list[str]:
    """Lists the paths of a model's blocks, in the order of registration; none if nothing is repeated."""
    # A unit of one weight is a layer inside a block, such as a convolution with its norm, unless the model
    # has nothing larger. A list of one element is a stack only if there is no better one, and so is a list
    # in a module that is called as a stem.
    for no_blocks in (_NO_BLOCKS, _NOTHING):
        for min_weights, min_repeats in ((2, 2), (2, 1), (1, 2)):
            blocks = _Search(model, min_weights, min_repeats, no_blocks).blocks_in(model, "")
            if min_weights == 1:
                blocks = _without_ends(model, blocks)
            if blocks:
                # A segmentation head may be a small network with blocks, but counts as the head.
                return [block for block in blocks if not _IN_HEAD.search(block)] or blocks
    return []


def _without_ends(model: nn.Module, layers: list[str]) -> list[str]:
    """Of a plain chain of layers (VGG, a perceptron) the first is the stem and the last the head."""
    first_name, *_ = (name for name, _ in model.named_parameters())
    others = [
        name
        for name, parameter in model.named_parameters()
        if len(full_shape(parameter)) >= 2 and not any(name.startswith(f"{layer}.") for layer in layers)
    ]
    if len(layers) > 2 and first_name.startswith(f"{layers[0]}.") and not any(map(STEM_NAME.search, others)):
        layers = layers[1:]
    if len(layers) > 1 and not others:
        layers = layers[:-1]
    return layers


class _Search:
    """One search for blocks: units with at least `min_weights` weights whose names do not match `no_blocks`.

    Attributes:
        numbered: Classes that number their attributes, and the name before the number. A module of such a
            class may have only one.
        large: Kinds with enough weights.
        sure: Kinds that are blocks wherever they stand in a list.
        repeated: Kinds that are blocks if no block is found inside of them.
    """

    def __init__(
        self, model: nn.Module, min_weights: int, min_repeats: int, no_blocks: re.Pattern[str]
    ) -> None:
        self.min_weights, self.no_blocks = min_weights, no_blocks
        modules = list(model.modules())
        self.numbered = {
            (type(module), prefix)
            for module in modules
            for prefix, elements in numbered_attributes(module).items()
            if len(elements) >= 2
        }
        self.large = {_kind(module) for module in modules if _weights(module) >= min_weights}
        lists = [units for module in modules for units in self._units(module)]
        alone = {kind for kind, times in self._alone(modules).items() if times >= min_repeats}
        classes = [kind for kind in _twins(lists) | alone if isinstance(kind, str)]
        self.sure = {kind for kind in classes if not _STAGE_NAME.search(kind.rsplit(".")[-1])}
        counts = [Counter(map(_kind, units.values())) for units in lists]
        twice = {kind for count in counts for kind, times in count.items() if times >= 2}
        every = [unit for units in lists for unit in units.values()]
        layers = {_kind(unit) for unit in every if _LAYER_CLASS.search(type(unit).__name__)}
        self.repeated = twice | alone | layers

    def _alone(self, modules: list[nn.Module]) -> Counter[Kind]:
        """How often each kind stands alone in its list, as the blocks in stages of depth 1 do."""
        return Counter(
            _kind(unit)
            for module in modules
            if isinstance(module, CONTAINERS) and sum(map(has_parameters, module.children())) == 1
            for units in self._units(module)
            for unit in units.values()
        )

    def _units(self, module: nn.Module) -> list[dict[str, nn.Module]]:
        """The lists of a module, without what is too small or called otherwise."""
        if isinstance(module, CONTAINERS):
            lists = [dict(module.named_children())]
        elif self.min_weights == 1:
            lists = []
        else:
            lists = [
                {name: unit for name, unit in elements.items() if type(unit) not in CONTAINERS}
                for prefix, elements in numbered_attributes(module).items()
                if (type(module), prefix) in self.numbered
            ]
        return [
            {
                name: unit
                for name, unit in elements.items()
                if _kind(unit) in self.large and not is_called(self.no_blocks, name, unit)
            }
            for elements in lists
        ]

    def blocks_in(self, module: nn.Module, path: str) -> list[str]:
        """Paths of the blocks inside of a module."""
        children = {
            name: child
            for name, child in module.named_children()
            if not is_called(self.no_blocks, name, child) and not _PARTS_NAME.search(name)
        }
        lists = [
            {name: unit for name, unit in units.items() if name in children} for units in self._units(module)
        ]
        blocks = self._last_alone(children)
        for units in lists:
            # A module in a list with blocks is a block, unless it is a list itself.
            if any(_kind(unit) in self.sure for unit in units.values()):
                blocks |= {name for name, unit in units.items() if type(unit) not in CONTAINERS}
        found = {
            name: [join(path, name)] if name in blocks else self.blocks_in(child, join(path, name))
            for name, child in children.items()
        }
        for units in lists:
            repeats = any(_kind(unit) in self.repeated for unit in units.values())
            if repeats or sum(bool(found[name]) for name in units) >= 2:
                # Units of one kind are all stages or all blocks.
                plain = {_kind(unit) for name, unit in units.items() if not found[name]}
                for name, unit in units.items():
                    if not found[name]:
                        found[name] = self._small_stage(unit, join(path, name))
                    elif repeats and _kind(unit) in plain:
                        found[name] = [join(path, name)]
        return [block for inner in found.values() for block in inner]

    def _last_alone(self, children: dict[str, nn.Module]) -> set[str]:
        """Names of blocks that stand behind a list of their kind, as the last of InceptionResNetV2 does."""
        names: set[str] = set()
        kinds: set[Kind] = set()
        for name, child in children.items():
            if _kind(child) in kinds & self.sure:
                names.add(name)
            if type(child) in CONTAINERS:
                kinds |= {_kind(unit) for unit in child.children()}
        return names if self.min_weights > 1 else set()

    def _small_stage(self, unit: nn.Module, path: str) -> list[str]:
        """Blocks of a unit in whose inside none is known: itself, or what a list holds."""
        if type(unit) not in CONTAINERS or _kind(unit) in self.repeated:
            return [path]
        elements = {name: child for name, child in unit.named_children() if has_parameters(child)}
        # A chain of bare layers is a stem.
        if any(not list(child.children()) for child in elements.values()):
            return []
        return [join(path, name) for name in elements]


def _twins(lists: list[dict[str, nn.Module]]) -> set[Kind]:
    """Kinds of which a list holds two in the same shape; what repeats inside of these is a part."""
    counts = [Counter((_kind(unit), _shapes(unit)) for unit in units.values()) for units in lists]
    return {kind for count in counts for (kind, _), times in count.items() if times >= 2}


def numbered_attributes(module: nn.Module) -> dict[str, dict[str, nn.Module]]:
    """Numbered children of a module that is not a container, by the part of the name before the number."""
    numbered: dict[str, dict[str, nn.Module]] = {}
    for name, child in module.named_children():
        if match := re.fullmatch(r"(.*\D)\d+[a-z]?", name):
            numbered.setdefault(match[1], {})[name] = child
    return {} if isinstance(module, CONTAINERS) else numbered


def _weights(module: nn.Module) -> int:
    """Number of weight matrices and convolution kernels; adapters do not count."""
    return sum(
        sum(size > 1 for size in full_shape(parameter)) >= 2 and "lora_" not in name
        for name, parameter in module.named_parameters()
    )


def has_parameters(module: nn.Module) -> bool:
    """Tells whether a module has parameters."""
    return next(module.parameters(), None) is not None


def _kind(module: nn.Module) -> Kind:
    """Class of a module; of a plain container, the kinds of its elements too."""
    if type(module) in CONTAINERS:
        return (type(module), tuple(_kind(child) for child in module.children()))
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, full_shape(parameter)) for name, parameter in module.named_parameters())
