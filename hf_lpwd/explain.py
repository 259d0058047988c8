"""`explain`: a model's layers, the decay rate of each, and what does not decay and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from hf_lpwd.layers import Layers, layer_index_map
from hf_lpwd.param_groups import NoDecay, no_decay_reasons, stack_rates
from hf_lpwd.parameters import full_shape
from hf_lpwd.schedules import Schedule


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        stack: Name of its stack; ``""`` where the model is one.
        layer: Its index, 0 (stem) to n (head).
        modules: What it consists of, such as ``"block vit.layers.3"``.
        rate: Its weight decay.
        parameters: Number of scalars.
        decayed: Number of scalars that decay at `rate`.
        not_decayed: Reason -> names of the parameters that do not decay.
    """

    stack: str
    layer: int
    modules: list[str]
    rate: float
    parameters: int
    decayed: int
    not_decayed: dict[str, list[str]]


@dataclass(frozen=True)
class Explanation:
    """All layers of a model, and each parameter's place; its text is a table.

    Attributes:
        layers: In order of stack and index.
        parameters: Name -> `stack`, `layer`, `module`, `rate` (0.0 where it does not decay), `not_decayed`
            (the reason, or None) and `shape`.
    """

    layers: list[LayerRow]
    parameters: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        several = len({row.stack for row in self.layers}) > 1
        header = ["layer", "blocks", "parameters", "decayed", "rate", "not decayed, and why"]
        rows = [
            [
                str(row.layer),
                ", ".join(row.modules),
                f"{row.parameters:,}",
                f"{row.decayed:,}",
                f"{row.rate:.5g}",
                "; ".join(f"{len(names)} {reason}" for reason, names in row.not_decayed.items()) or "-",
            ]
            for row in self.layers
        ]
        if several:
            header.insert(0, "stack")
            rows = [[row.stack, *cells] for row, cells in zip(self.layers, rows, strict=True)]
        total = sum(row.parameters for row in self.layers)
        decayed = sum(row.decayed for row in self.layers)
        mean = sum(row.rate * row.decayed for row in self.layers) / decayed if decayed else 0.0
        return (
            f"{_table(header, rows, right_aligned={'layer', 'parameters', 'decayed', 'rate'})}\n"
            f"{total:,} parameters, {decayed:,} of them decayed, at a mean rate of {mean:.5g}"
        )


def explain(
    model: nn.Module,
    *,
    weight_decay: float,
    schedule: Schedule = "linear",
    match_budget: bool = False,
    decay_all: bool = False,
    no_decay: NoDecay | None = None,
    layer_map: Layers | None = None,
) -> Explanation:
    """Tells what `create_lpwd_optimizer` would do to each parameter of a model.

    Args:
        model: As for `create_lpwd_optimizer`; weights may be on the meta device. Frozen parameters
            (`requires_grad=False`) are listed as not decayed.
        weight_decay: See `create_lpwd_optimizer`, as the rest.
        schedule: The layer schedule.
        match_budget: Whether the mean rate over decayed scalars is `weight_decay`.
        decay_all: Whether nothing is exempt.
        no_decay: Regular expressions of what is exempt.
        layer_map: In place of `layer_index_map(model)`.

    Raises:
        ValueError: As `create_lpwd_optimizer` does.
    """
    layers = layer_index_map(model, layer_map)
    exempt = no_decay_reasons(model, no_decay=no_decay, decay_all=decay_all)
    rates = stack_rates(model, layers, exempt, weight_decay, schedule, match_budget=match_budget)
    parameters = {}
    for name, parameter in model.named_parameters():
        stack, index = layers.stack_by_name[name], layers.index_by_name[name]
        reason = exempt.get(name) if parameter.requires_grad else "frozen"
        parameters[name] = {
            "stack": stack,
            "layer": index,
            "module": layers.reason_by_name.get(name, ""),
            "rate": rates[stack][index] if reason is None else 0.0,
            "not_decayed": reason,
            "shape": list(full_shape(parameter)),
        }
    rows = [
        _row(
            stack,
            index,
            rate,
            {k: v for k, v in parameters.items() if (v["stack"], v["layer"]) == (stack, index)},
        )
        for stack in rates
        for index, rate in enumerate(rates[stack])
    ]
    return Explanation(rows, parameters)


def _row(stack: str, index: int, rate: float, members: dict[str, dict[str, Any]]) -> LayerRow:
    sizes = {name: prod(about["shape"]) for name, about in members.items()}
    not_decayed: dict[str, list[str]] = {}
    for name, about in members.items():
        if about["not_decayed"] is not None:
            not_decayed.setdefault(about["not_decayed"], []).append(name)
    return LayerRow(
        stack=stack,
        layer=index,
        modules=list(dict.fromkeys(about["module"] for about in members.values())),
        rate=rate,
        parameters=sum(sizes.values()),
        decayed=sum(sizes[name] for name, about in members.items() if about["not_decayed"] is None),
        not_decayed=not_decayed,
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right_aligned: set[str]) -> str:
    rows = [header, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if name in right_aligned else f"{cell:<{width}}"
            for cell, width, name in zip(row, widths, header, strict=True)
        ).rstrip()
        for row in rows
    )
