"""What a plan says of each parameter and each layer, and its table, the same in every text and page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

#: Columns that are not numbers.
TEXT_COLUMNS = frozenset(
    {"stack", "modules", "other rates", "not decayed, and why", "name", "kind", "layers"}
)


@dataclass(frozen=True)
class PlannedParameter:
    """What will happen to one parameter.

    Attributes:
        stack: Name of its stack of layers; ``""`` if the model has only one.
        layer: Index of its layer, 0 (stem) to n (head).
        module: What the layer map says it belongs to, such as ``"block vit.layers.3"``.
        shape: Its shape, also if DeepSpeed has partitioned it.
        trained_rate: Its weight decay when it is trained.
        lr_scale: Factor of its learning rate.
        exempt: Why it does not decay; None if it does.
        pattern: The key of `decay_by_pattern` that gives its rate, or None.
        frozen: Whether it did not require gradients when the plan was made.
    """

    stack: str
    layer: int
    module: str
    shape: tuple[int, ...]
    trained_rate: float
    lr_scale: float = 1.0
    exempt: str | None = None
    pattern: str | None = None
    frozen: bool = False

    @property
    def rate(self) -> float:
        """Its weight decay; 0.0 if it does not decay."""
        return 0.0 if self.frozen else self.trained_rate

    @property
    def not_decayed(self) -> str | None:
        """Why it does not decay; None if it does, at a rate that may be 0."""
        return "frozen" if self.frozen else self.exempt

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Returns `stack`, `layer`, `module`, `rate`, `lr_scale`, `not_decayed` and `shape`."""
        shown = ("stack", "layer", "module", "rate", "lr_scale", "not_decayed")
        return {**{name: getattr(self, name) for name in shown}, "shape": list(self.shape)}


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

    @classmethod
    def of(cls, members: Mapping[str, PlannedParameter], **known: Any) -> PlannedLayer:
        """Adds up the parameters of a layer, of which `stack`, `layer`, `rate` and `lr_scale` are known."""
        not_decayed: dict[str, list[str]] = {}
        by_pattern: dict[str, list[str]] = {}
        for name, planned in members.items():
            if planned.not_decayed is not None:
                not_decayed.setdefault(planned.not_decayed, []).append(name)
            elif planned.pattern is not None:
                by_pattern.setdefault(f"at {planned.rate:g} ({planned.pattern!r})", []).append(name)
        return cls(
            **known,
            modules=list(dict.fromkeys(planned.module for planned in members.values())),
            parameters=sum(planned.size for planned in members.values()),
            decayed=sum(planned.size for planned in members.values() if planned.not_decayed is None),
            not_decayed=not_decayed,
            by_pattern=by_pattern,
        )


def layer_table(layers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the `layers` in `LayerPlan.to_dict`, without columns that say nothing."""
    columns = {
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
