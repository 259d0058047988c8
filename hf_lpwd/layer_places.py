"""Blocks found -> the place of every parameter, by where its module stands between them."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

from torch import nn

from hf_lpwd.layer_blocks import join
from hf_lpwd.layer_order import Order
from hf_lpwd.layer_stacks import find_stacks
from hf_lpwd.layer_walk import HEAD_NAME, INPUT_NAME, Walk
from hf_lpwd.layer_widths import in_and_out
from hf_lpwd.parameters import unwrap_name


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
    order = Order(model)
    stacks = find_stacks(model, order)
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
    walks = {label: Walk(model, stack, order) for label, stack in zip(labels, stacks, strict=True)}
    for label, walk in walks.items():
        places |= {name: Place(label, *position) for name, position in walk.positions()}
    places |= _outside(model, places, walks)
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    first = {
        names[0]: min((places[name] for name in names), key=attrgetter("layer"))
        for names in names_of.values()
    }
    order.warn()
    return {name: first[name] for name, _ in model.named_parameters()}, heads


def _outside(model: nn.Module, places: dict[str, Place], walks: dict[str, Walk]) -> dict[str, Place]:
    """Places what is in no stack.

    Embeddings and input projections are the stem of the stack before which they stand, projections and heads
    the head of the one behind which they stand.
    """
    owners = {
        join(path, name): module
        for path, module in model.named_modules(remove_duplicate=False)
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    labels, found = list(walks), {}
    following: list[str | None] = []
    for name in reversed(owners):
        following.append(places[name].stack if name in places else following[-1] if following else None)
    previous = None
    for (name, owner), after in zip(owners.items(), reversed(following), strict=True):
        if name in places:
            previous = places[name].stack
            continue
        is_embedding = isinstance(owner, nn.Embedding)
        is_head = not is_embedding and any(map(HEAD_NAME.fullmatch, name.split(".")))
        if previous is None and after is not None and not is_head:
            takes, makes = in_and_out(owner)
            is_head = takes in walks[after].widths[-1] and makes not in walks[after].widths[0]
        enters = not is_head and after is not None and (previous is None or INPUT_NAME.search(name))
        label = _stack_called(name, labels) or (after if enters else previous) or labels[0]
        found[name] = Place(label, 0, "stem") if enters else Place(label, walks[label].n, "head")
    return found


def _stack_called(name: str, labels: list[str]) -> str | None:
    """The stack whose name begins as a parameter's does: ``visual_projection``, ``vision_model``.

    Queries enter the decoder.
    """
    beginnings = {part[:3] for part in name.split(".")} | ({"dec"} if "quer" in name else set())
    return next((label for label in labels if label.split(".")[-1][:3] in beginnings), None)
