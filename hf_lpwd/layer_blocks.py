"""Finds a model's repeated blocks from its module tree alone: no forward pass, no module paths, no library.

A block is the innermost repeated unit of a model: an element of a `ModuleList`, `Sequential` or `ModuleDict`
whose like occurs again. `find_stacks` lists them in the order of registration, which is the order in which
they run wherever a list is iterated.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_lpwd.parameters import full_shape

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)

# Convolutional stems and the hybrid ViTs' whole backbones are lists of blocks too, but stand for the stem.
STEM_NAME = re.compile(r"(?<!sy)stem|embed(?!_out)", re.IGNORECASE)
DOWNSAMPLE_NAME = re.compile(r"down_?sampl|patch_?merg|patch_embed|transition|reduction", re.IGNORECASE)
_NO_BLOCKS = re.compile(rf"{STEM_NAME.pattern}|{DOWNSAMPLE_NAME.pattern}|pos_?enc", re.IGNORECASE)
_NOTHING = re.compile(r"(?!)")
_IN_HEAD = re.compile(r"(?:^|[._])heads?\.", re.IGNORECASE)
# What transformers and torch call a transformer's layer: a block also where it stands alone, as in RT-DETR.
_LAYER_CLASS = re.compile(r"(?:En|De)coderLayer$")


@dataclass(frozen=True)
class Stack:
    """Blocks that data flows through one after another.

    Attributes:
        path: Module that holds the whole stack with what stands before and after its blocks.
        blocks: Paths of the blocks, in order.
    """

    path: str
    blocks: list[str]


def join(path: str, name: str) -> str:
    """Path of the child `name` of the module at `path`."""
    return f"{path}.{name}" if path else name


def is_called(pattern: re.Pattern[str], name: str, module: nn.Module) -> bool:
    """Tells whether `pattern` is found in an attribute's name or in its class's."""
    return pattern.search(name) is not None or pattern.search(type(module).__name__) is not None


def find_stacks(model: nn.Module) -> list[Stack]:
    """Lists the stacks of blocks of a model: one, or one for each tower, encoder and decoder.

    Returns:
        Stacks in the order of registration; none if nothing is repeated.
    """
    # A unit of one weight is a layer inside a block, such as a convolution with its norm, unless the model
    # has nothing larger. A list of one element is a stack only if there is no better one, and so is a list
    # in a module that is called as a stem.
    for no_blocks in (_NO_BLOCKS, _NOTHING):
        for min_weights, min_repeats in ((2, 2), (2, 1), (1, 2)):
            blocks = _Search(model, min_weights, min_repeats, no_blocks).blocks_in(model, "")
            if min_weights == 1:
                blocks = _without_ends(model, blocks)
            # A segmentation head may be a small network of its own, but is the head all the same.
            blocks = [block for block in blocks if not _IN_HEAD.search(block)] or blocks
            if blocks:
                return _split(model, "", blocks)
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


def _split(module: nn.Module, path: str, blocks: list[str]) -> list[Stack]:
    """Separates backbone, towers, encoder and decoder: sibling models that each count from 0."""
    children = {
        name: (child, inner)
        for name, child in module.named_children()
        if (inner := [block for block in blocks if f"{block}.".startswith(f"{join(path, name)}.")])
    }
    stacks = {
        name: _split(child, join(path, name), inner)
        for name, (child, inner) in children.items()
        if inner != [join(path, name)]
    }
    towers = [name for name, (child, _) in children.items() if _is_model(child)]
    splits = any(len(inner) > 1 for inner in stacks.values())
    if len(towers) >= 2 or children.keys() == {"encoder", "decoder"} or splits:
        return [
            stack
            for name, (_, inner) in children.items()
            for stack in stacks.get(name, [Stack(join(path, name), inner)])
        ]
    return [Stack(path, blocks)]


def _is_model(module: nn.Module) -> bool:
    """Whether a module is a transformers or timm model in its own right."""
    return hasattr(module, "pretrained_cfg") or any(
        base.__name__ == "PreTrainedModel" for base in type(module).__mro__
    )


class _Search:
    """One search for blocks, with a given idea of how small and how rare they may be."""

    def __init__(
        self, model: nn.Module, min_weights: int, min_repeats: int, no_blocks: re.Pattern[str]
    ) -> None:
        self.min_weights, self.no_blocks = min_weights, no_blocks
        lists = [elements for module in model.modules() for elements in self._lists_of_units(module)]
        kinds = [Counter(map(_kind, elements.values())) for elements in lists]
        self.repeated = {kind for count in kinds for kind, times in count.items() if times >= 2}
        # No list has two stages of one shape, for a stage changes the shape. So where a list has two of one
        # kind and shape, these are blocks, and what repeats inside of them (experts, parallel branches) are
        # their parts. The same holds for kinds that always stand alone, as in stages of depth 1.
        shapes = [Counter((_kind(unit), _shapes(unit)) for unit in elements.values()) for elements in lists]
        alike = {kind for count in shapes for (kind, _), times in count.items() if times >= 2}
        alone = Counter(
            _kind(child)
            for module in model.modules()
            if isinstance(module, CONTAINERS) and sum(map(_has_parameters, module.children())) == 1
            for units in self._lists_of_units(module)
            for child in units.values()
        )
        alone_often = {kind for kind, times in alone.items() if times >= min_repeats}
        self.repeated |= alone_often
        self.repeated |= {
            _kind(unit)
            for elements in lists
            for unit in elements.values()
            if _LAYER_CLASS.search(type(unit).__name__)
        }
        self.final = {kind for kind in alike | alone_often if isinstance(kind, str)}

    def _lists_of_units(self, module: nn.Module) -> list[dict[str, nn.Module]]:
        """The lists of a module, without what is too small or called otherwise."""
        lists = lists_in(module) if self.min_weights > 1 or isinstance(module, CONTAINERS) else []
        return [
            {
                name: unit
                for name, unit in elements.items()
                if _weights(unit) >= self.min_weights
                and not is_called(self.no_blocks, name, unit)
                and (isinstance(module, CONTAINERS) or type(unit) not in CONTAINERS)
            }
            for elements in lists
        ]

    def blocks_in(self, module: nn.Module, path: str) -> list[str]:
        """Paths of the blocks inside of a module."""
        lists = self._lists_of_units(module)
        blocks: set[str] = set()
        for units in lists:
            if any(_kind(unit) in self.final for unit in units.values()):
                blocks |= units.keys()
        found = {
            name: [join(path, name)] if name in blocks else self.blocks_in(child, join(path, name))
            for name, child in module.named_children()
            if not is_called(self.no_blocks, name, child)
        }
        for units in lists:
            repeats = any(_kind(unit) in self.repeated for unit in units.values())
            if repeats or sum(bool(found[name]) for name in units) >= 2:
                # Units of one kind are all stages or all blocks.
                plain = {_kind(unit) for name, unit in units.items() if not found[name]}
                found |= {
                    name: [join(path, name)]
                    for name, unit in units.items()
                    if not found[name] or (repeats and _kind(unit) in plain)
                }
        return [block for inner in found.values() for block in inner]


def lists_in(module: nn.Module) -> list[dict[str, nn.Module]]:
    """The lists that a module holds: itself if it is a container, else attributes such as layer1, layer2."""
    if isinstance(module, CONTAINERS):
        return [dict(module.named_children())]
    numbered: dict[str, dict[str, nn.Module]] = {}
    for name, child in module.named_children():
        if match := re.fullmatch(r"(.*\D)\d+[a-z]?", name):
            numbered.setdefault(match[1], {})[name] = child
    return [elements for elements in numbered.values() if len(elements) >= 2]


def _weights(module: nn.Module) -> int:
    """Number of weight matrices and convolution kernels; adapters do not count."""
    return sum(
        sum(size > 1 for size in full_shape(parameter)) >= 2 and "lora_" not in name
        for name, parameter in module.named_parameters()
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _kind(module: nn.Module) -> str | tuple[Any, ...]:
    """Class of a module; a container without a class of its own is of the kind of what it holds."""
    if type(module) in CONTAINERS:
        return (type(module), tuple(_kind(child) for child in module.children()))
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, full_shape(parameter)) for name, parameter in module.named_parameters())
