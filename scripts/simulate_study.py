"""How often a study's report makes a false claim, and finds a true difference: simulated reports.

    python scripts/simulate_study.py --reports 2000

Each report is made by the package's own selection, comparison and correction, on runs whose truth is known. A
run's scores are the luck of its seed, which methods share, and noise of its own, of which most shows in
validation and test alike, as with real runs; test accuracies are rounded to whole images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from hf_lpwd.study.compare import family
from hf_lpwd.study.comparison import Comparison
from hf_lpwd.study.plan import Question
from hf_lpwd.study.planning import detectable_points
from hf_lpwd.study.record import Data
from hf_lpwd.study.tasks import Method, Setting, Task

NUM_IMAGES = 10_000
SEED_STD, RUN_STD, SHARED = 0.01, 0.004, 0.8
MARGIN = 0.3

_DATA = Data.model_construct(num_classes=10, sizes={"test": NUM_IMAGES}, fingerprints={})


@dataclass(frozen=True)
class Scenario:
    """One truth.

    Attributes:
        name: What it is.
        level: The rate that is promised.
        at_most: Whether the promise is an upper bound; else a lower one.
        claim: Whether a comparison counts.
        settings: Number of settings of each method, the baseline first.
        seeds: Number of seeds.
        tasks: Number of tasks.
        gain: True difference of the methods to the baseline.
        missing: Fraction of runs that are missing (out of memory).
        diverged: Fraction of runs that diverge, of every method.
    """

    name: str
    level: float
    at_most: bool
    claim: Callable[[Comparison], bool]
    settings: tuple[int, ...] = (4, 4)
    seeds: int = 5
    tasks: int = 1
    gain: float = 0.0
    missing: float = 0.0
    diverged: float = 0.0


def differs(c: Comparison) -> bool:
    """A claim of a difference."""
    return c.verdict in ("better", "worse")


def _equivalent(c: Comparison) -> bool:
    return c.verdict == "equivalent"


def _found(c: Comparison) -> bool:
    return c.name == "m1" and c.verdict == "better"


def _planted(seeds: int, methods: int) -> float:
    """The difference that a plan promises to find with 80% probability, with one setting a method."""
    return detectable_points(seeds, methods, RUN_STD * math.sqrt(2.0))


SCENARIOS = [
    Scenario("no difference: 7 methods, 4 settings, 5 seeds", 0.05, True, differs, (4,) * 8),
    Scenario("no difference: 7 methods on 6 tasks, 5 seeds", 0.05, True, differs, (2,) * 8, tasks=6),
    Scenario("no difference: 20 settings against 1, 5 seeds", 0.05, True, differs, (1, 20)),
    Scenario("no difference: 20 settings against 1, 10 seeds", 0.05, True, differs, (1, 20), seeds=10),
    Scenario("no difference: 1 setting against 20, 5 seeds", 0.05, True, differs, (20, 1)),
    Scenario("no difference: 2% of runs missing, 10 seeds", 0.05, True, differs, (4,) * 4, 10, missing=0.02),
    Scenario("no difference: 20% of runs diverge, 10 seeds", 0.05, True, differs, (4,) * 4, 10, diverged=0.2),
    Scenario("no difference: 20% diverge, 5 seeds, 1 setting", 0.05, True, differs, (1, 1), diverged=0.2),
    Scenario("at the margin: equivalent?, 10 seeds", 0.05, True, _equivalent, (1, 1), 10, gain=MARGIN / 100),
    Scenario("at the margin: 7 methods, 20 seeds", 0.05, True, _equivalent, (2,) * 8, 20, gain=MARGIN / 100),
    Scenario("planted as the plan says: 5 seeds", 0.8, False, _found, (1, 1), 5, gain=_planted(5, 1)),
    Scenario("planted as the plan says: 10 seeds", 0.8, False, _found, (1, 1), 10, gain=_planted(10, 1)),
    Scenario("planted as the plan says: 7 methods, 10 seeds", 0.8, False, _found, (1,) * 8, 10,
             gain=_planted(10, 7)),
]  # fmt: skip


def simulate(scenario: Scenario, reports: int, seed: int = 0) -> int:
    """Number of reports with a claim."""
    generator = np.random.default_rng(seed)
    question = Question(to="m0", margin=MARGIN)
    found = 0
    for _ in range(reports):
        tasks = [_task(f"t{t}", scenario, generator) for t in range(scenario.tasks)]
        comparisons = family(question, tasks, lambda task: list(task.methods))
        found += any(map(scenario.claim, comparisons))
    return found


def _task(name: str, scenario: Scenario, generator: np.random.Generator) -> Task:
    luck = generator.normal(0.7, SEED_STD, scenario.seeds)
    methods = {}
    for m, number in enumerate(scenario.settings):
        shape = (number, scenario.seeds)
        own = generator.normal(0.0, RUN_STD * math.sqrt(SHARED), shape)
        scores = luck + own + generator.normal(0.0, RUN_STD * math.sqrt(1.0 - SHARED), (2, *shape))
        scores[1] += scenario.gain * (m > 0)
        broken = generator.random(shape) < scenario.diverged
        scores[:, broken] = generator.uniform(0.1, 0.5, broken.sum())
        absent = generator.random(shape) < scenario.missing
        grid: dict[Setting, dict[int, Any]] = {
            Setting(float(k), 1e-3): {
                s: None if absent[k, s] else _record(s, *scores[:, k, s], broken[k, s])
                for s in range(scenario.seeds)
            }
            for k in range(number)
        }
        methods[f"m{m}"] = Method(f"m{m}", grid)
    return _Task(name, methods, [])


class _Task(Task):
    """A task whose test split was read."""

    has_test = True


@dataclass(frozen=True)
class _Run:
    """What the comparison reads of a record."""

    seed: int
    outcome: str
    scores: dict[str, float]
    data: Data = _DATA
    pairing: dict[str, str] = field(default_factory=dict)
    correct: dict[str, str] = field(default_factory=dict)

    def score(self, split: str) -> float:
        """Accuracy on a split."""
        return self.scores[split]


def _record(seed: int, validation: float, test: float, diverged: bool) -> Any:
    # The last evaluation on validation of a run that diverged stands for both.
    test = validation if diverged else round(test * NUM_IMAGES) / NUM_IMAGES
    outcome = "diverged" if diverged else "completed"
    return _Run(seed, outcome, {"validation": float(validation), "test": float(test)})


def main() -> None:
    """Prints the rate of each scenario with its 95% interval (Clopper and Pearson)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for scenario in SCENARIOS:
        count = simulate(scenario, args.reports, args.seed)
        interval = stats.binomtest(count, args.reports).proportion_ci()
        rate = f"{count / args.reports:.1%} ({interval.low:.1%} to {interval.high:.1%})"
        promise = f"{'at most' if scenario.at_most else 'at least'} {scenario.level:.0%}"
        print(f"{scenario.name}: {rate}; promised: {promise}", flush=True)


if __name__ == "__main__":
    main()
