"""Blocks found -> the layer index of every parameter, by where it stands between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from torch import nn

from hf_lpwd.layer_blocks import (
    CONTAINERS,
    DOWNSAMPLE_NAME,
    STEM_NAME,
    Stack,
    find_stacks,
    is_called,
    join,
    lists_in,
)
from hf_lpwd.parameters import unwrap_name

# Models like DETR call their heads embeddings, and what embeds the positions of their queries a head.
_HEAD_NAME = re.compile(
    r"(?!query_pos)(?:.*_)?(?:head|heads|classifier|pooler|score|logit\w*)(?:_.*)?|(?:class|bbox)_embed",
    re.IGNORECASE,
)
_INPUT_NAME = re.compile(rf"{STEM_NAME.pattern}|input_proj|quer(?:y|ies)", re.IGNORECASE)
_NORM_NAME = re.compile(r"norm|(?:^|\.)ln_?\w*\.(?:weight|bias)$", re.IGNORECASE)

#: A parameter's name, its index, and why.
Placed = Iterator[tuple[str, int, str]]


class Place(NamedTuple):
    """Where a parameter stands.

    Attributes:
        stack: Name of its stack; ``""`` where the model is one.
        layer: 0 (stem) to n (head).
        module: What decides it: ``"stem"``, ``"block vit.layers.3"``, ``"feeds block ..."``,
            ``"after block ..."``, ``"final norm"``, ``"pooler"``, ``"head"``, or a rule of the user.
    """

    stack: str
    layer: int
    module: str


def find_places(model: nn.Module) -> tuple[dict[str, Place], dict[str, int]]:
    """Gives each parameter a layer from the model's structure.

    Returns:
        Parameter name -> place, for `model.named_parameters()`; and stack -> n.

    Raises:
        ValueError: There are no repeated blocks.
    """
    stacks = find_stacks(model)
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no repeated stack of blocks (a ModuleList or Sequential that holds "
            "several modules of one class): pass layers, such as "
            r"{r'stem\..*': 'stem', r'body\.(\d+)\..*': 'block', '.*': 'head'}"
        )
    labels = [unwrap_name(stack.path) if len(stacks) > 1 else "" for stack in stacks]
    heads = {label: len(stack.blocks) + 1 for label, stack in zip(labels, stacks, strict=True)}
    # A tied parameter has several names here.
    places: dict[str, Place] = {}
    for label, stack in zip(labels, stacks, strict=True):
        places |= {name: Place(label, index, why) for name, index, why in _Walk(model, stack).placed()}
    named = list(model.named_parameters(remove_duplicate=False))
    places |= _outside([name for name, _ in named], places, heads)
    names_of: dict[int, list[str]] = {}
    for name, parameter in named:
        names_of.setdefault(id(parameter), []).append(name)
    first = {
        names[0]: min((places[name] for name in names), key=attrgetter("layer"))
        for names in names_of.values()
    }
    return {name: first[name] for name, _ in model.named_parameters()}, heads


def _outside(names: list[str], places: Mapping[str, Place], heads: Mapping[str, int]) -> dict[str, Place]:
    """Places what is in no stack: embeddings and input projections before one, projections and heads behind.

    Args:
        names: All names of parameters, in the order of registration.
        places: Of those in a stack.
        heads: Stack -> n.
    """
    labels, found = list(heads), {}
    following: list[str | None] = []
    for name in reversed(names):
        following.append(places[name].stack if name in places else following[-1] if following else None)
    previous = None
    for name, after in zip(names, reversed(following), strict=True):
        if name in places:
            previous = places[name].stack
            continue
        is_head = any(map(_HEAD_NAME.fullmatch, name.split(".")[-2:]))
        enters = not is_head and after is not None and (previous is None or _INPUT_NAME.search(name))
        label = _stack_called(name, labels) or (after if enters else previous) or labels[0]
        found[name] = Place(label, 0, "stem") if enters else Place(label, heads[label], "head")
    return found


def _stack_called(name: str, labels: list[str]) -> str | None:
    """The stack whose name begins as a parameter's does: ``visual_projection``, ``vision_model``.

    Queries enter the decoder.
    """
    beginnings = {part[:3] for part in name.split(".")} | ({"dec"} if "quer" in name else set())
    return next((label for label in labels if label.split(".")[-1][:3] in beginnings), None)


class _Walk:
    """Goes through the modules of one stack in the order of registration, counting the blocks passed."""

    def __init__(self, model: nn.Module, stack: Stack) -> None:
        self.model, self.stack = model, stack
        self.index_of = {block: i for i, block in enumerate(stack.blocks, start=1)}
        self.n = len(stack.blocks) + 1
        self.passed = 0
        #: Modules that hold blocks, without being one.
        self.scopes = {""} | {
            block[:end] for block in stack.blocks for end in range(len(block)) if block[end] == "."
        }
        #: Elements of a list that goes along with the list of stages: one for each stage.
        self.beside: dict[str, tuple[int, str]] = {}

    def placed(self) -> Placed:
        """Yields name, index and reason for each parameter of the stack."""
        yield from self._scope(self.model.get_submodule(self.stack.path), self.stack.path, in_stage=False)

    def _scope(self, module: nn.Module, path: str, in_stage: bool) -> Placed:
        """A module that holds blocks; what stands in it before, between and behind them."""
        self._align_lists(module, path)
        for name, _ in module.named_parameters(recurse=False):
            yield self._named(join(path, name), module, self._feeding(self.passed + 1))
        children = list(module.named_children())
        paths = [join(path, name) for name, _ in children]
        scopes = self.scopes.intersection(paths)
        last = max(i for i, child_path in enumerate(paths) if child_path in scopes | self.index_of.keys())
        for i, ((name, child), child_path) in enumerate(zip(children, paths, strict=True)):
            if child_path in scopes:
                stages = isinstance(module, CONTAINERS) and len(scopes) > 1
                yield from self._scope(child, child_path, in_stage or stages)
                continue
            if child_path in self.index_of:
                self.passed = self.index_of[child_path]
                place = self.passed, f"block {child_path}"
            elif i > last:
                is_final = not in_stage or all(is_called(_NORM_NAME, *later) for later in children[i:])
                place = self._after(name, child, is_final)
            elif self.passed == 0 and _HEAD_NAME.fullmatch(name):
                place = self.n, "head"
            else:
                place = self._feeding(self.passed + 1)
            for inner_path, inner in child.named_modules(prefix=child_path):
                place = self.beside.get(inner_path, place)
                for parameter_name, _ in inner.named_parameters(recurse=False):
                    yield self._named(join(inner_path, parameter_name), inner, place)

    def _named(self, name: str, owner: nn.Module, place: tuple[int, str]) -> tuple[str, int, str]:
        index, reason = place
        if reason == "head" and "pooler" in name:
            reason = "pooler"
        elif reason == "head" and (_NORM_NAME.search(name) or _NORM_NAME.search(type(owner).__name__)):
            reason = "final norm"
        return name, index, reason

    def _after(self, name: str, child: nn.Module, is_final: bool) -> tuple[int, str]:
        """Place of what stands behind the last block of its scope.

        Args:
            name: Name of the child.
            child: The module.
            is_final: Behind the last block of all, it is the final norm or the head and no part of the stage.
        """
        if self.passed + 1 < self.n:
            is_downsampling = is_called(DOWNSAMPLE_NAME, name, child)
            return self._feeding(self.passed + 1) if is_downsampling else self._behind(self.passed)
        if not is_final:
            return self._behind(self.passed)
        if is_called(_INPUT_NAME, name, child) and not _HEAD_NAME.fullmatch(name):
            return 0, "stem"
        return self.n, "head"

    def _feeding(self, index: int) -> tuple[int, str]:
        if index == 1:
            return 0, "stem"
        if index == self.n:
            return self.n, "head"
        return index, f"feeds block {self.stack.blocks[index - 1]}"

    def _behind(self, index: int) -> tuple[int, str]:
        return index, f"after block {self.stack.blocks[index - 1]}"

    def _align_lists(self, module: nn.Module, path: str) -> None:
        """Finds lists that run along with a list of stages: patch embeddings before, norms behind each.

        A list of downsampling layers may lack the first stage's.
        """
        children = {name: child for name, child in module.named_children() if not _is_stem(name)}
        lists = [
            (name, [join(join(path, name), key) for key, _ in child.named_children()])
            for name, child in children.items()
            if isinstance(child, CONTAINERS)
        ]
        self._align_feeders([elements for _, elements in lists])
        lists += [("", [join(path, name) for name in elements]) for elements in lists_in(module)]
        order = [inner_path for inner_path, _ in module.named_modules(prefix=path)]
        for _, stages in lists:
            if len(stages) < 2 or not self.scopes.issuperset(stages):
                continue
            for name, beside in lists:
                missing = len(stages) - len(beside)
                fits = missing == 0 or (missing == 1 and DOWNSAMPLE_NAME.search(name))
                if not fits or not (self.scopes | self.index_of.keys()).isdisjoint(beside):
                    continue
                comes_first = order.index(beside[0]) < order.index(stages[0])
                for element, stage in zip(beside, stages[missing:], strict=True):
                    blocks = [i for block, i in self.index_of.items() if block.startswith(f"{stage}.")]
                    if comes_first or missing:
                        self.beside[element] = self._feeding(blocks[0])
                    elif stage == stages[-1]:
                        self.beside[element] = self._feeding(blocks[-1] + 1)
                    else:
                        self.beside[element] = self._behind(blocks[-1])

    def _align_feeders(self, lists: list[list[str]]) -> None:
        """Finds lists that stand right before a list of as many blocks and feed it, one each."""
        for before, blocks in pairwise(lists):
            if len(before) != len(blocks) or not self.index_of.keys() >= set(blocks):
                continue
            # Elements of several classes run one after another, as a norm and a convolution do.
            alike = len({type(self.model.get_submodule(element)) for element in before}) == 1
            if alike and len(before) >= 2 and (self.scopes | self.index_of.keys()).isdisjoint(before):
                for element, block in zip(before, blocks, strict=True):
                    self.beside[element] = self._feeding(self.index_of[block])


def _is_stem(name: str) -> bool:
    return "stem" in name.lower()
