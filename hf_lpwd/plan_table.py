"""The table of a plan's layers, the same in every text and on every page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Columns that are not numbers.
TEXT_COLUMNS = frozenset(
    {"stack", "modules", "other rates", "not decayed, and why", "name", "kind", "layers"}
)


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan.

    Attributes:
        stack: Name of its stack; ``""`` if the model has only one.
        layer: Its index, 0 (stem) to n (head).
        modules: What it consists of, such as ``["block vit.layers.3"]``.
        rate: The schedule's weight decay for it.
        lr_scale: Factor of its learning rate.
        parameters: Number of elements.
        decayed: Number of elements that decay, at `rate` or at a rate of `decay_by_pattern`.
        not_decayed: Reason -> names of the parameters that do not decay.
        by_pattern: Rate and pattern of `decay_by_pattern` -> names of the parameters that have this rate.
    """

    stack: str
    layer: int
    modules: list[str]
    rate: float
    lr_scale: float
    parameters: int
    decayed: int
    not_decayed: dict[str, list[str]]
    by_pattern: dict[str, list[str]]


def layer_table(layers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the table of a plan's layers, as texts.

    Args:
        layers: `LayerPlan.layers` as dicts, as `LayerPlan.to_dict` has them.

    Returns:
        Header, and a row of texts for each layer. A column that says nothing is left out: the stack if there
        is one, the learning-rate scale and other rates if there are none.
    """
    columns: dict[str, list[str]] = {
        "stack": [row["stack"] for row in layers],
        "layer": [str(row["layer"]) for row in layers],
        "modules": [", ".join(row["modules"]) for row in layers],
        "parameters": [f"{row['parameters']:,}" for row in layers],
        "decayed": [f"{row['decayed']:,}" for row in layers],
        "rate": [f"{row['rate']:.5g}" for row in layers],
        "lr scale": [f"{row.get('lr_scale', 1.0):.5g}" for row in layers],
        "other rates": [_counted(row.get("by_pattern", {})) for row in layers],
        "not decayed, and why": [_counted(row["not_decayed"]) for row in layers],
    }
    for name, nothing in (("stack", columns["stack"][0]), ("lr scale", "1"), ("other rates", "-")):
        if set(columns[name]) == {nothing}:
            del columns[name]
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def _counted(names_by_reason: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{len(names)} {reason}" for reason, names in names_by_reason.items()) or "-"


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as text, its numbers to the right."""
    rows = [header, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if name in TEXT_COLUMNS else f"{cell:>{width}}"
            for cell, width, name in zip(row, widths, header, strict=True)
        ).rstrip()
        for row in rows
    )
