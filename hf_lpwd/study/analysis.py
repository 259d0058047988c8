"""Records -> what a report says: each method's figures, chosen on validation, compared with a baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.study.methods import METHOD_FLAGS
from hf_lpwd.study.selection import Robustness, best_epochs_mean, decay_robustness, select_on_validation
from hf_lpwd.study.stats import Comparison, Estimate, compare_to_baseline, mean_interval

DEFAULT_BASELINE = "wd uniform"

_TUNED = ("weight_decay", "learning_rate")
_DEFAULT_SEED = 42


class Setting(NamedTuple):
    """The hyperparameters that are chosen on validation; None where the study left the default."""

    weight_decay: float | None
    learning_rate: float | None


@dataclass(frozen=True)
class MethodResult:
    """A method within one context.

    Attributes:
        name: The method.
        setting: Chosen on validation: the highest mean accuracy over seeds.
        runs: Seed -> record, at that setting.
        grid: Setting -> seed -> record, of all completed runs.
        validation: Accuracy at the setting.
        test: The same on test; on validation if the data have no test split.
        paper: Mean of the ten best test accuracies after an epoch, where the study read these.
        mean_rate: Mean decay rate over the decayed scalars, at the setting.
        robustness: Over the decay rates above 0, at the setting's learning rate; None if there are not two.
        comparison: With the baseline; None for the baseline itself.
    """

    name: str
    setting: Setting
    runs: dict[int, dict[str, Any]]
    grid: dict[Setting, dict[int, dict[str, Any]]]
    validation: Estimate
    test: Estimate
    paper: Estimate | None
    mean_rate: float
    robustness: Robustness | None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Context:
    """What is compared with each other: methods on one task, all else equal.

    Attributes:
        label: How it differs from the other contexts; ``""`` if there is one.
        baseline: Name of the baseline.
        methods: The baseline first, then by test accuracy.
        notes: What a reader has to know, as sentences.
    """

    label: str
    baseline: str
    methods: list[MethodResult]
    notes: list[str]


def setting_of(record: Mapping[str, Any]) -> Setting:
    """The hyperparameters of a record."""
    return Setting(*(record["settings"].get(name) for name in _TUNED))


def seed_of(record: Mapping[str, Any]) -> int:
    """The seed of a record."""
    return int(record["settings"].get("seed", _DEFAULT_SEED))


def score(record: Mapping[str, Any], split: str) -> float:
    """Accuracy on a split, NaN if there is none; for ``"test"`` without a test split that on validation."""
    metrics = record["metrics"].get(split) or record["metrics"].get("validation") or {}
    accuracy = metrics.get("accuracy")
    return math.nan if accuracy is None else float(accuracy)


def analyse(records: Sequence[dict[str, Any]], baseline: str | None = None) -> list[Context]:
    """Groups completed runs by task, chooses each method's setting, and compares the methods.

    Args:
        records: From `load_records`.
        baseline: A method; default: AdamW (``"wd uniform"``) where it was run, else the first.

    Raises:
        BadInputError: No run has completed, or none of the method `baseline`.
    """
    completed = [record for record in records if record["status"] == "completed"]
    if not completed:
        raise BadInputError(f"none of the {len(records)} runs has completed")
    names = sorted({record["method"] for record in completed})
    if baseline is not None and baseline not in names:
        raise BadInputError(f"{unknown('baseline', baseline, names)} (the methods are {', '.join(names)})")
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in completed:
        groups.setdefault(json.dumps(_task(record), sort_keys=True), []).append(record)
    labels = _labels([json.loads(key) for key in groups])
    return [
        _context(label, group, baseline, [r for r in records if json.dumps(_task(r), sort_keys=True) == key])
        for label, (key, group) in zip(labels, groups.items(), strict=True)
    ]


def _task(record: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {*METHOD_FLAGS, *_TUNED, "seed", "peer"}
    return {name: value for name, value in record["settings"].items() if name not in left_out}


def _labels(tasks: list[dict[str, Any]]) -> list[str]:
    names = sorted(set().union(*tasks))
    varied = [name for name in names if len({json.dumps(task.get(name)) for task in tasks}) > 1]
    return [", ".join(f"{name}={task.get(name)}" for name in varied) for task in tasks]


def _context(
    label: str, records: list[dict[str, Any]], baseline: str | None, all_records: list[dict[str, Any]]
) -> Context:
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    results = {name: _method(name, runs) for name, runs in by_method.items()}
    chosen = baseline if baseline in results else DEFAULT_BASELINE
    chosen = chosen if chosen in results else next(iter(results))
    scores = {
        name: {seed: score(record, "test") for seed, record in result.runs.items()}
        for name, result in results.items()
    }
    compared = compare_to_baseline(scores, chosen)
    methods = [replace(result, comparison=compared.get(name)) for name, result in results.items()]
    methods.sort(key=lambda result: (result.name != chosen, -result.test.value, result.name))
    return Context(label, chosen, methods, _notes(records, methods, all_records))


def _method(name: str, records: list[dict[str, Any]]) -> MethodResult:
    grid: dict[Setting, dict[int, dict[str, Any]]] = {}
    for record in records:
        grid.setdefault(setting_of(record), {})[seed_of(record)] = record
    grid = dict(sorted(grid.items(), key=lambda item: _order(item[0])))
    seeds = sorted({seed for runs in grid.values() for seed in runs})
    validation = [
        [score(runs[seed], "validation") if seed in runs else math.nan for seed in seeds]
        for runs in grid.values()
    ]
    setting = list(grid)[select_on_validation(validation)]
    runs = dict(sorted(grid[setting].items()))
    rates, decayed = zip(
        *((layer["rate"], layer["decayed"]) for layer in next(iter(runs.values()))["layers"]), strict=True
    )
    epochs = [
        run["test_accuracy_after_epochs"] for run in runs.values() if run.get("test_accuracy_after_epochs")
    ]
    return MethodResult(
        name=name,
        setting=setting,
        runs=runs,
        grid=grid,
        validation=mean_interval([score(run, "validation") for run in runs.values()]),
        test=mean_interval([score(run, "test") for run in runs.values()]),
        paper=mean_interval([best_epochs_mean(scores) for scores in epochs]) if epochs else None,
        mean_rate=float(np.average(rates, weights=decayed)) if any(decayed) else 0.0,
        robustness=_robustness(grid, setting),
    )


def decay_curve(
    grid: Mapping[Setting, Mapping[int, dict[str, Any]]], learning_rate: float | None
) -> dict[float, Mapping[int, dict[str, Any]]]:
    """Returns decay rate -> seed -> record at one learning rate, for the rates above 0."""
    return {
        setting.weight_decay: runs
        for setting, runs in grid.items()
        if setting.learning_rate == learning_rate and setting.weight_decay
    }


def _robustness(grid: Mapping[Setting, Mapping[int, dict[str, Any]]], setting: Setting) -> Robustness | None:
    curve = decay_curve(grid, setting.learning_rate)
    seeds = set.intersection(*(set(runs) for runs in curve.values())) if curve else set()
    if len(curve) < 2 or not seeds:
        return None
    scores = [[score(runs[seed], "test") for runs in curve.values()] for seed in sorted(seeds)]
    return decay_robustness(scores, list(curve))


def _order(setting: Setting) -> tuple[float, ...]:
    return tuple(-1.0 if value is None else float(value) for value in setting)


def _notes(
    records: list[dict[str, Any]], methods: list[MethodResult], all_records: list[dict[str, Any]]
) -> list[str]:
    notes = []
    failed = sum(record["status"] != "completed" for record in all_records)
    if failed:
        notes.append(
            f"{failed} of {len(all_records)} runs failed and are left out; the table of runs says why."
        )
    most = max(len(result.runs) for result in methods)
    if most < 5:
        notes.append(f"There are {most} seeds; for a claim, five or more are asked for.")
    short = [result.name for result in methods if len(result.runs) < most]
    if short:
        notes.append(f"With fewer seeds than the others: {', '.join(short)}.")
    if not any("test" in record["metrics"] for record in records):
        notes.append("The data have no test split: test figures are those of validation, and so too high.")
    if len({json.dumps(record["versions"], sort_keys=True) for record in records}) > 1:
        notes.append("The runs were made with different versions of the libraries.")
    starts: dict[int, set[str]] = {}
    for record in records:
        starts.setdefault(seed_of(record), set()).add(json.dumps(record["pairing"], sort_keys=True))
    if any(len(found) > 1 for found in starts.values()):
        notes.append("Runs of one seed do not start from the same weights and split: they are not paired.")
    rates = {round(r.mean_rate / r.setting.weight_decay, 3) for r in methods if r.setting.weight_decay}
    if len(rates) > 1:
        notes.append(
            "At the same weight_decay the methods decay by different amounts (see the mean rate): a gain "
            "may be one of amount. match_decay_budget compares at equal amounts."
        )
    return notes
