"""Blocks -> stacks: two towers, a backbone and what is built on it, an encoder and its decoder are stacks.

Each stack counts its own layers. A model with none of these, such as the example of `hf_lpwd.layers`, is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from hf_lpwd.layer_blocks import (
    CONTAINERS,
    STEM_NAME,
    find_blocks,
    has_parameters,
    is_called,
    join,
    numbered_attributes,
)
from hf_lpwd.layer_order import Order
from hf_lpwd.parameters import unwrap_name


@dataclass(frozen=True)
class Stack:
    """Blocks that data flows through one after another.

    Attributes:
        name: Its path without wrappers' prefixes; ``""`` where the model is one stack.
        path: Module that holds the stack: its blocks and the layers before and after them.
        blocks: Paths of the blocks, in order.
    """

    name: str
    path: str
    blocks: list[str]


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


def find_stacks(model: nn.Module, order: Order) -> list[Stack]:
    """Lists a model's stacks in the order of registration; none if nothing is repeated."""
    blocks = find_blocks(model)
    stacks = _split(model, "", blocks) if blocks else {}
    return [
        Stack(
            unwrap_name(path) if len(stacks) > 1 else "",
            path,
            _first_of_alternating(model, inner, order),
        )
        for path, inner in stacks.items()
    ]


def _split(module: nn.Module, path: str, blocks: list[str]) -> dict[str, list[str]]:
    """Path -> blocks of each stack inside of a module; siblings are stacks if each counts its own layers."""
    children = _with_blocks(module, path, blocks)
    stacks = {
        name: _split(child, join(path, name), inner)
        for name, (child, inner) in children.items()
        if inner != [join(path, name)]
    }
    models = [name for name, (child, inner) in children.items() if _is_model(child, join(path, name), inner)]
    # A tower embeds its own input. The stages of a list do not, or each of them does.
    lists = (
        [dict(module.named_children())]
        if isinstance(module, CONTAINERS)
        else list(numbered_attributes(module).values())
    )
    listed = {name for elements in lists if len(elements) >= 2 for name in elements}
    towers = [name for name in stacks if name not in listed and _embeds(children[name][0])]
    if (
        (models and len(children) >= 2)
        or len(towers) >= 2
        or children.keys() >= {"encoder", "decoder"}
        or any(len(inner) > 1 for inner in stacks.values())
    ):
        return {
            inner_path: found
            for name, (_, inner) in children.items()
            for inner_path, found in stacks.get(name, {join(path, name): inner}).items()
        }
    return {path: blocks}


def _with_blocks(module: nn.Module, path: str, blocks: list[str]) -> dict[str, tuple[nn.Module, list[str]]]:
    """Children that hold blocks or are one, with the paths of these."""
    return {
        name: (child, inner)
        for name, child in module.named_children()
        if (inner := [block for block in blocks if f"{block}.".startswith(f"{join(path, name)}.")])
    }


def _is_model(module: nn.Module, path: str, blocks: list[str]) -> bool:
    """Whether a module is a transformers or timm model in its own right, or holds one and no other blocks."""
    if hasattr(module, "pretrained_cfg") or any(
        base.__name__ == "PreTrainedModel" for base in type(module).__mro__
    ):
        return True
    children = _with_blocks(module, path, blocks)
    return len(children) == 1 and all(
        _is_model(child, join(path, name), inner) for name, (child, inner) in children.items()
    )


def _embeds(module: nn.Module) -> bool:
    """Whether a module begins with embeddings: of tokens, or of an image's patches."""
    return any(
        is_called(STEM_NAME, name, child) and has_parameters(child) for name, child in module.named_children()
    )


def _first_of_alternating(model: nn.Module, blocks: list[str], order: Order) -> list[str]:
    """Of lists whose elements alternate (XLM: attentions, feed-forward layers) the first has the blocks.

    Such lists are siblings of the same length that hold different classes.
    """
    lists: dict[str, list[str]] = {}
    for block in blocks:
        lists.setdefault(block.rpartition(".")[0], []).append(block)
    by_place: dict[tuple[str, int], list[str]] = {}
    for path, elements in lists.items():
        by_place.setdefault((path.rpartition(".")[0], len(elements)), []).append(path)
    dropped: set[str] = set()
    for (_, length), (first, *others) in by_place.items():
        for other in others:
            kinds = [type(model.get_submodule(lists[path][0])) for path in (first, other)]
            if length >= 2 and kinds[0] is not kinds[1]:
                start, end = order.first_use(lists[other][0]), order.first_use(lists[first][-1])
                if start is None or end is None:
                    order.taken_for(other, f"blocks behind {first}")
                elif start < end:
                    dropped |= set(lists[other])
    return [block for block in blocks if block not in dropped]
