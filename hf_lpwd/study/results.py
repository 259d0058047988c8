"""What each method reached on a task, at the setting that validation chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_lpwd.messages import counted
from hf_lpwd.study.record import Record, test_score
from hf_lpwd.study.stats import Estimate, mean_interval
from hf_lpwd.study.tasks import Method, Setting, Task, shared_seeds


@dataclass(frozen=True)
class Robustness:
    """How much a method depends on the decay rate; each is the mean over seeds of the seed's own value.

    Attributes:
        worst: Lowest score over the grid.
        range: Highest minus lowest.
        area: Area under the score over log lambda, divided by its width: a mean score over the grid.
    """

    worst: Estimate
    range: Estimate
    area: Estimate


@dataclass(frozen=True)
class MethodResult:
    """A method on a task.

    Attributes:
        name: The method.
        setting: Chosen on validation: the highest mean accuracy over the seeds that all settings have.
        runs: Seed -> record, at that setting.
        method: All its runs.
        validation: Accuracy at the setting.
        test: The same on test; None if there is no test split.
        paper: Mean of the ten best test accuracies after an epoch, where the study read these.
        mean_rate: Mean decay rate over the decayed parameters, at the setting.
        robustness: Over the decay rates above 0, at the setting's learning rate; None if there are not two.
        remarks: What a reader has to know of it.
    """

    name: str
    setting: Setting
    runs: dict[int, Record]
    method: Method
    validation: Estimate
    test: Estimate | None
    paper: Estimate | None
    mean_rate: float
    robustness: Robustness | None
    remarks: list[str]


def results_of(task: Task, baseline: str) -> list[MethodResult]:
    """The methods of a task, the baseline first, then by test accuracy."""
    found = [_result(task, method) for method in task.methods.values()]
    made = [result for result in found if result is not None]
    return sorted(made, key=lambda r: (r.name != baseline, -(r.test or r.validation).value, r.name))


def has_test(results: Sequence[MethodResult]) -> bool:
    """Whether accuracies of a task are those on test; without a test split they are those on validation."""
    return any(result.test is not None for result in results)


def _result(task: Task, method: Method) -> MethodResult | None:
    usable = method.usable
    if not usable:
        return None
    seeds = method.common_seeds()
    setting = method.best(seeds) if seeds else max(usable, key=lambda one: len(usable[one]))
    runs = dict(sorted(usable[setting].items()))
    tests = [score for run in runs.values() if (score := run.score("test")) is not None]
    papers = [
        best_epochs_mean(run.test_accuracy_after_epochs)
        for run in runs.values()
        if run.test_accuracy_after_epochs
    ]
    layers = next((run.layers for run in runs.values() if run.layers), [])
    decayed = [layer.decayed for layer in layers]
    return MethodResult(
        name=method.name,
        setting=setting,
        runs=runs,
        method=method,
        validation=_mean([run.score("validation") for run in runs.values()]),
        test=_mean(tests) if task.has_test and tests else None,
        paper=_mean(papers) if papers else None,
        mean_rate=float(np.average([one.rate for one in layers], weights=decayed)) if any(decayed) else 0.0,
        robustness=_robustness(method, setting),
        remarks=list(_remarks(method, setting)),
    )


def _mean(scores: Sequence[float | None]) -> Estimate:
    return mean_interval([score for score in scores if score is not None]).clipped()


def _remarks(method: Method, setting: Setting) -> Iterator[str]:
    runs = method.runs
    for outcome in ("diverged", "failed"):
        number = sum(run is not None and run.outcome == outcome for run in runs)
        if number:
            yield f"{number} of {counted(len(runs), 'run')} {outcome}"
    if None in runs:
        yield f"{runs.count(None)} of {counted(len(runs), 'run')} missing"
    for i, axis in enumerate(("decay rate", "learning rate")):
        value, values = setting[i], sorted({rate for one in method.grid if (rate := one[i]) is not None})
        if len(values) > 1 and value in (values[0], values[-1]):
            yield f"the best {axis} is the {'lowest' if value == values[0] else 'highest'} of the grid"


def decay_curve(method: Method, learning_rate: float | None) -> dict[float, dict[int, Record]]:
    """Returns decay rate -> seed -> record at one learning rate, for the rates above 0."""
    return {
        setting.decay: runs
        for setting, runs in method.usable.items()
        if setting.learning_rate == learning_rate and setting.decay
    }


def _robustness(method: Method, setting: Setting) -> Robustness | None:
    curve = decay_curve(method, setting.learning_rate)
    seeds = shared_seeds(curve.values())
    if len(curve) < 2 or not seeds:
        return None
    scores = [[test_score(runs[seed]) for runs in curve.values()] for seed in seeds]
    return decay_robustness(scores, list(curve))


def decay_robustness(scores: ArrayLike, decays: ArrayLike) -> Robustness:
    """Summarises scores over a grid of decay rates, with 95% t intervals over seeds.

    The area is that of the trapezoidal rule over log lambda, divided by log(lambda_max / lambda_min).

    Args:
        scores: [n seeds, k rates].
        decays: Rates [k], k >= 2, distinct and above 0, in any order.
    """
    values, rates = np.asarray(scores, dtype=np.float64), np.asarray(decays, dtype=np.float64)
    order = np.argsort(rates)
    values, logs = values[:, order], np.log(rates[order])
    worst, best = values.min(axis=1), values.max(axis=1)
    area = np.trapezoid(values, logs, axis=1) / (logs[-1] - logs[0])
    return Robustness(mean_interval(worst), mean_interval(best - worst), mean_interval(area))


def best_epochs_mean(test_scores: ArrayLike, best: int = 10) -> float:
    """The paper's metric: mean of the 10 best test accuracies among the epochs of one run.

    It selects on the test set, and so is too high; it stands in a report beside the honest figure only.

    Args:
        test_scores: Test accuracy after each epoch [epochs]; with fewer than `best` all are averaged.
        best: How many.
    """
    return float(np.sort(test_scores)[-best:].mean())
