"""The tables of a report: values with their kinds, as CSV, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hf_lpwd.messages import counted
from hf_lpwd.study.analysis import Study
from hf_lpwd.study.comparison import Comparison
from hf_lpwd.study.record import Record
from hf_lpwd.study.stats import Estimate
from hf_lpwd.study.tasks import setting_of

#: Kind of column -> how a number is written. Percent and points are of accuracies in 0..1.
_FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100.0 * value:.2f}",
    "points": lambda value: f"{100.0 * value:+.2f}",
    "p": lambda value: f"{value:.3f}" if value >= 0.001 else "< 0.001",
    "number": lambda value: f"{value:g}" if abs(value) < 1e6 else f"{value:.3g}",
    "text": str,
}
_Value = Callable[[Any], Any]
# Digits of a CSV: enough for any use, and not those in which two versions of a library may differ.
_DIGITS = 6


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

    def frame(self) -> pd.DataFrame:
        """As a data frame in the units of the headings; an estimate takes three columns."""
        columns: dict[str, list[Any]] = {}
        for i, (name, kind) in enumerate(self.columns):
            values = [row[i] for row in self.rows]
            scale = 100.0 if kind in ("percent", "points") else 1.0
            if any(isinstance(value, Estimate) for value in values):
                for part, suffix in (("value", ""), ("low", " low"), ("high", " high")):
                    columns[name + suffix] = [_scaled(getattr(v, part, None), scale) for v in values]
            else:
                columns[name] = [_scaled(value, scale) for value in values]
        return pd.DataFrame(columns, dtype=object)

    def csv(self) -> str:
        """As CSV."""
        return self.frame().to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [[name for name, _ in self.columns], ["---"] * len(self.columns)]
        lines += [[_escaped(text) for text, _ in row] for row in self.cells()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: Any, kind: str) -> str:
    """Writes a value to be read; an estimate with its interval."""
    write = _FORMATS[kind]
    if isinstance(value, Estimate):
        if math.isnan(value.value):
            return "-"
        if math.isnan(value.low):
            return write(value.value)
        return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, str) else write(value)


def _key(value: Any) -> str:
    number = value.value if isinstance(value, Estimate) else value
    return "" if number is None else str(number)


def _scaled(value: Any, scale: float) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return round(scale * value, _DIGITS) if isinstance(value, float) else value


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _table(name: str, title: str, rows_of: Sequence[Any], columns: Mapping[tuple[str, str], _Value]) -> Table:
    """A table of objects: heading and kind of each column -> its value for an object."""
    rows = [[value(one) for value in columns.values()] for one in rows_of]
    return Table(name, title, list(columns), rows)


def summary_table(study: Study, task: str) -> Table:
    """What each method reaches at the setting chosen on validation."""
    results = study.results[task]
    columns: dict[tuple[str, str], _Value] = {
        ("method", "text"): lambda r: r.name,
        ("decay", "number"): lambda r: r.setting.decay,
        ("learning rate", "number"): lambda r: r.setting.learning_rate,
        ("mean rate", "number"): lambda r: r.mean_rate,
        ("settings tried", "number"): lambda r: len(r.method.grid),
        ("seeds", "number"): lambda r: len(r.runs),
        ("validation, %", "percent"): lambda r: r.validation,
        ("test, %", "percent"): lambda r: r.test,
        ("paper's metric, %", "percent"): lambda r: r.paper,
        ("remarks", "text"): lambda r: "; ".join(r.remarks) or "-",
    }
    if all(result.paper is None for result in results):
        del columns["paper's metric, %", "percent"]
    return _table("summary", "Each method at its best setting on validation", results, columns)


def comparison_table(name: str, title: str, comparisons: Sequence[Comparison], with_task: bool) -> Table:
    """Comparisons with their verdicts, where one was asked for."""
    columns: dict[tuple[str, str], _Value] = {
        ("compared", "text"): lambda c: c.name,
        ("task", "text"): lambda c: c.task,
        ("with", "text"): lambda c: c.to,
        ("verdict", "text"): lambda c: c.verdict,
        ("difference over seeds, points", "points"): lambda c: c.difference,
        ("over seeds and test images, points", "points"): lambda c: c.over_images,
        ("p", "p"): lambda c: c.p_difference,
        ("p of equivalence", "p"): lambda c: c.p_equivalence,
        ("seeds", "number"): lambda c: c.paired.num_seeds if c.paired else 0,
        ("could have shown, points", "percent"): lambda c: c.detectable,
        ("settings tried", "text"): lambda c: f"{c.tried[0]} : {c.tried[1]}" if c.paired else None,
        ("remarks", "text"): lambda c: "; ".join(remarks(c)) or "-",
    }
    left_out = set() if with_task else {"task"}
    if not any(c.question.verdict for c in comparisons):
        left_out |= {"verdict", "p", "p of equivalence", "could have shown, points"}
    kept = {column: value for column, value in columns.items() if column[0] not in left_out}
    return _table(name, title, comparisons, kept)


def remarks(c: Comparison) -> list[str]:
    """What stands beside a comparison: why there is no verdict, what diverged, what is left out."""
    found = [f"no verdict: {c.withheld}"] if c.withheld else []
    if c.split != "test" and c.paired is not None:
        found.append(f"the difference is one of {c.split} accuracies")
    if any(c.diverged):
        found.append(f"diverged: {counted(c.diverged[0], 'run')} of {c.name}, {c.diverged[1]} of {c.to}")
    return [*found, *c.left_out]


def robustness_table(study: Study, task: str) -> Table:
    """How each method depends on the decay rate."""
    columns: dict[tuple[str, str], _Value] = {
        ("method", "text"): lambda r: r.name,
        ("worst, %", "percent"): lambda r: r.robustness.worst.clipped(),
        ("range, points", "percent"): lambda r: r.robustness.range.clipped(),
        ("area over log rate, %", "percent"): lambda r: r.robustness.area.clipped(),
    }
    results = [result for result in study.results[task] if result.robustness is not None]
    split = "Test" if any(result.test is not None for result in results) else "Validation"
    return _table("robustness", f"{split} accuracy over all decay rates above 0", results, columns)


def pooled_table(study: Study) -> Table:
    """Interquartile means over tasks."""
    columns = [("method", "text"), ("interquartile mean, %", "percent")]
    rows = [[name, estimate] for name, estimate in study.pooled.items()]
    return Table("pooled", "Pooled over tasks, with bootstrap intervals stratified by task", columns, rows)


def runs_table(records: Sequence[Record]) -> Table:
    """Every run, also those that failed."""
    columns: dict[tuple[str, str], _Value] = {
        ("method", "text"): lambda r: r.method,
        ("decay", "number"): lambda r: setting_of(r.settings).decay,
        ("learning rate", "number"): lambda r: setting_of(r.settings).learning_rate,
        ("seed", "number"): lambda r: r.seed,
        ("outcome", "text"): lambda r: r.outcome,
        ("validation, %", "percent"): lambda r: None if r.outcome == "failed" else r.score("validation"),
        ("test, %", "percent"): lambda r: None if r.outcome == "failed" else r.score("test"),
        ("seconds", "number"): lambda r: r.times.seconds,
        ("other settings, or the error", "text"): _rest_or_error,
        ("record", "text"): lambda r: r.id,
    }
    return _table("runs", "All runs", records, columns)


def _rest_or_error(record: Record) -> str:
    if record.error:
        return f"{record.error.type}: {record.error.message}"
    names = ("dataset_name", "model_name_or_path", "model_type", "optim")
    return ", ".join(f"{name}={value}" for name in names if (value := record.settings.get(name)))
