"""The tables of a report: rows of values, as CSV in full precision, and as Markdown and HTML to read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_lpwd.study.analysis import Context, score, seed_of, setting_of
from hf_lpwd.study.stats import Estimate

#: Kind of column -> how a number is written. Percent and points are of accuracies in 0..1.
_FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100.0 * value:.2f}",
    "points": lambda value: f"{100.0 * value:+.2f}",
    "p": lambda value: f"{value:.3f}" if value >= 0.001 else "< 0.001",
    "share": lambda value: f"{value:.2f}",
    "number": lambda value: f"{value:g}" if abs(value) < 1e6 else f"{value:.3g}",
    "text": str,
}


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: File name without extension.
        title: What it shows.
        columns: Heading and kind of each column; the first column names the row.
        rows: A value for each column: text, a number, an `Estimate`, or None.
    """

    name: str
    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]

    def cells(self) -> list[list[tuple[str, str]]]:
        """For each cell its text, and what it is sorted by."""
        return [
            [(shown(value, kind), _key(value)) for value, (_, kind) in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def csv(self) -> str:
        """As CSV, in the units of the headings; an estimate takes three columns."""
        with_bounds = [
            any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.columns))
        ]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(
            heading
            for (name, _), bounds in zip(self.columns, with_bounds, strict=True)
            for heading in ([name, f"{name} low", f"{name} high"] if bounds else [name])
        )
        for row in self.rows:
            writer.writerow(
                number
                for value, bounds, (_, kind) in zip(row, with_bounds, self.columns, strict=True)
                for number in _numbers(value, kind)[: 3 if bounds else 1]
            )
        return buffer.getvalue()

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [[name for name, _ in self.columns], ["---"] * len(self.columns)]
        lines += [[_escaped(text) for text, _ in row] for row in self.cells()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: Any, kind: str) -> str:
    """Writes a value to be read; an estimate with its interval."""
    write = _FORMATS[kind]
    if isinstance(value, Estimate):
        if math.isnan(value.low):
            return write(value.value)
        return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, str) else write(value)


def _key(value: Any) -> str:
    number = value.value if isinstance(value, Estimate) else value
    return "" if number is None else str(number)


def _numbers(value: Any, kind: str) -> list[Any]:
    given = (value.value, value.low, value.high) if isinstance(value, Estimate) else (value, None, None)
    scale = 100.0 if kind in ("percent", "points") else 1
    return [
        number if isinstance(number, str) else "" if number is None or math.isnan(number) else scale * number
        for number in given
    ]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def summary_table(context: Context) -> Table:
    """What each method reaches at the setting chosen on validation."""
    with_paper = any(result.paper is not None for result in context.methods)
    columns = [
        ("method", "text"), ("weight_decay", "number"), ("learning rate", "number"), ("mean rate", "number"),
        ("seeds", "number"), ("validation, %", "percent"), ("test, %", "percent"),
        *([("paper's metric, %", "percent")] if with_paper else []),
    ]  # fmt: skip
    rows = [
        [
            result.name, result.setting.weight_decay, result.setting.learning_rate, result.mean_rate,
            len(result.runs), result.validation, result.test, *([result.paper] if with_paper else []),
        ]
        for result in context.methods
    ]  # fmt: skip
    return Table("summary", "Accuracy of each method, chosen on validation", columns, rows)


def difference_table(context: Context) -> Table:
    """Each method against the baseline."""
    columns = [
        ("method", "text"), ("verdict", "text"), ("difference, points", "points"),
        ("bootstrap, points", "points"), ("p", "p"), ("p, Holm", "p"), ("improves with probability", "share"),
        ("seeds", "number"), ("seeds to see 0.1 points", "number"),
    ]  # fmt: skip
    rows = [
        [
            result.name, found.verdict, found.difference, found.bootstrap, found.p_value,
            found.adjusted_p_value, found.improvement, found.num_seeds, found.seeds_needed,
        ]
        for result in context.methods
        if (found := result.comparison) is not None
    ]  # fmt: skip
    return Table("differences", f"Paired differences to {context.baseline} on test", columns, rows)


def robustness_table(context: Context) -> Table:
    """How each method depends on the decay rate."""
    columns = [
        ("method", "text"),
        ("worst, %", "percent"),
        ("range, points", "percent"),
        ("area over log rate, %", "percent"),
    ]
    rows = [
        [result.name, robustness.worst, robustness.range, robustness.area]
        for result in context.methods
        if (robustness := result.robustness) is not None
    ]
    return Table("robustness", "Test accuracy over all decay rates above 0", columns, rows)


def runs_table(records: Sequence[dict[str, Any]]) -> Table:
    """Every run, also those that failed."""
    columns = [
        ("method", "text"), ("weight_decay", "number"), ("learning rate", "number"), ("seed", "number"),
        ("status", "text"), ("validation, %", "percent"), ("test, %", "percent"), ("seconds", "number"),
        ("other settings, or the error", "text"), ("record", "text"),
    ]  # fmt: skip
    rows = []
    for record in records:
        done = record["status"] == "completed"
        error = record.get("error", {})
        rest = f"{error.get('type')}: {error.get('message')}" if not done else _rest(record)
        rows.append(
            [
                record["method"], *setting_of(record), seed_of(record), record["status"],
                score(record, "validation") if done else None, score(record, "test") if done else None,
                record["times"].get("seconds"), rest, record["id"],
            ]
        )  # fmt: skip
    return Table("runs", "All runs", columns, rows)


def _rest(record: dict[str, Any]) -> str:
    names = ("dataset_name", "model_name_or_path", "model_type", "optim")
    return ", ".join(f"{name}={record['settings'][name]}" for name in names if name in record["settings"])
