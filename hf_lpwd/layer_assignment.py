"""Blocks found -> the layer index of every parameter, by where it stands between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from operator import itemgetter

from torch import nn

from hf_lpwd.layer_detection import (
    CONTAINERS,
    DOWNSAMPLE_NAME,
    STEM_NAME,
    Stack,
    find_stacks,
    is_called,
    join,
    lists_in,
)
from hf_lpwd.layer_map import LayerMap, unwrap_name

_HEAD_NAME = re.compile(r"(?:.*_)?(?:head|heads|classifier|pooler|score|logit\w*)(?:_.*)?", re.IGNORECASE)
_NORM_NAME = re.compile(r"norm|(?:^|\.)ln_?\w*\.(?:weight|bias)$", re.IGNORECASE)

#: A parameter's name, its index, and why.
Placed = Iterator[tuple[str, int, str]]


def map_by_structure(model: nn.Module, sizes: Mapping[str, int]) -> LayerMap:
    """Gives each parameter a layer index from the model's structure.

    Args:
        model: Any module.
        sizes: Parameter name -> number of scalars.

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
    #: Index, stack and reason by name; a tied parameter has several names.
    places: dict[str, tuple[int, str, str]] = {}
    for label, stack in zip(labels, stacks, strict=True):
        places |= {name: (index, label, reason) for name, index, reason in _Walk(model, stack).placed()}
    names_of: dict[int, list[str]] = {}
    previous = None
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
        if name in places:
            previous = places[name][1]
            continue
        # Shared by the stacks: embeddings stand before the first of them, projections and heads behind them.
        label = _tower_called(name, labels) or previous or labels[0]
        is_stem = previous is None and not _HEAD_NAME.fullmatch(name.split(".")[-1])
        places[name] = (0, label, "stem") if is_stem else (heads[label], label, "head")
    first = {
        names[0]: min((places[name] for name in names), key=itemgetter(0)) for names in names_of.values()
    }
    return LayerMap(
        index_by_name={name: first[name][0] for name in sizes},
        num_layers_by_stack=heads,
        stack_by_name={name: first[name][1] for name in sizes},
        reason_by_name={name: first[name][2] for name in sizes},
        size_by_name=dict(sizes),
    )


def _tower_called(name: str, labels: list[str]) -> str | None:
    """The stack whose name begins as a projection's does: ``visual_projection``, ``vision_model``."""
    beginnings = {part[:3] for part in name.split(".")}
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
        if is_called(STEM_NAME, name, child) and not _HEAD_NAME.fullmatch(name):
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


def _is_stem(name: str) -> bool:
    return "stem" in name.lower()
