"""Two sides of a question on one task -> their paired differences by seed, or why there is no verdict."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from hf_lpwd.messages import BadInputError
from hf_lpwd.study.methods import METHOD_FLAGS
from hf_lpwd.study.plan import Question, Side
from hf_lpwd.study.records import Record
from hf_lpwd.study.stats import MIN_SEEDS, Estimate, Paired, Verdict, granularity_floor, holm, paired, verdict
from hf_lpwd.study.tasks import Method, Setting, Task, measured

Runs = Mapping[int, Record]
_MANY_IMAGES = 100_000


@dataclass(frozen=True)
class Comparison:
    """One side of a question against the other, on one task.

    Attributes:
        task: Its name.
        name: Of the side that is compared.
        to: Of the side that it is compared to.
        margin: In 0..1.
        paired: The differences, in 0..1; None if no seed has both sides.
        settings: Of both sides, chosen on validation; empty if all were averaged.
        tried: How many settings each side chose from.
        diverged: How many runs of each side diverged, at the settings that are compared.
        image_variance: Variance of the mean difference over test images; None if not recorded.
        left_out: Seeds and settings that do not count, as sentences.
        withheld: Why there is no verdict; None if there is one.
        p_difference: Corrected over the family.
        p_equivalence: Corrected over the family.
        num_tests: Size of the family.
    """

    task: str
    name: str
    to: str
    margin: float
    paired: Paired | None
    settings: tuple[Setting, ...] = ()
    tried: tuple[int, int] = (1, 1)
    diverged: tuple[int, int] = (0, 0)
    image_variance: float | None = None
    left_out: list[str] = field(default_factory=list)
    withheld: str | None = None
    p_difference: float = math.nan
    p_equivalence: float = math.nan
    num_tests: int = 1

    @property
    def verdict(self) -> Verdict:
        """What can be said, corrected over the family."""
        if self.withheld or self.paired is None:
            return "undecided"
        return verdict(self.paired.mean, self.p_difference, self.p_equivalence)

    @property
    def difference(self) -> Estimate:
        """The mean difference with its 95% interval over seeds, on these test images."""
        return Estimate(math.nan, math.nan, math.nan) if self.paired is None else self.paired.interval()

    @property
    def over_images(self) -> Estimate | None:
        """The same over seeds and test images; None if the records do not tell which images were right."""
        if self.paired is None or self.image_variance is None:
            return None
        return self.paired.interval(self.image_variance)

    @property
    def detectable(self) -> float:
        """The smallest true difference that these runs find with a probability of 80%."""
        return math.nan if self.paired is None else self.paired.detectable(self.num_tests)


def family(
    question: Question, tasks: Sequence[Task], methods: Callable[[Task], list[Side]]
) -> list[Comparison]:
    """All comparisons of a question, over all tasks, corrected together.

    Args:
        question: The question.
        tasks: All tasks.
        methods: The sides to compare on a task, where the question names none.
    """
    made = [
        compare(task, side, question)
        for task in tasks
        for side in (question.compare or methods(task))
        if side != question.to and has_runs(task, side)
    ]
    return corrected(made)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's correction over a family, of the tests for a difference and of those for equivalence."""
    raw = [(c, c.paired if c.withheld is None else None) for c in comparisons]
    differences = holm([p.p_difference() if p else math.nan for _, p in raw])
    equivalences = holm([p.p_equivalence(c.margin) if p else math.nan for c, p in raw])
    return [
        replace(c, p_difference=float(d), p_equivalence=float(e), num_tests=len(raw))
        for c, d, e in zip(comparisons, differences, equivalences, strict=True)
    ]


def compare(task: Task, side: Side, question: Question) -> Comparison:
    """Compares two sides on a task; what stands against a verdict is named."""
    names = side_name(side), side_name(question.to)
    base = Comparison(task.name, *names, question.margin / 100.0, None)
    lacking = [name for one, name in zip((side, question.to), names, strict=True) if not has_runs(task, one)]
    if lacking:
        return replace(base, withheld=f"there is no run of {' or of '.join(lacking)} on {task.name}")
    if question.at == "best" and question.measure == "accuracy":
        made = _best_against_best(task, base, side, question.to)
    else:
        made = _matched(task, base, side, question)
    return replace(made, withheld=_withheld(task, made))


def side_name(side: Side) -> str:
    """What a side is called: the method, or its settings."""
    if isinstance(side, str):
        return side
    return ", ".join(f"{key}={value}" for key, value in side.items())


def _withheld(task: Task, made: Comparison) -> str | None:
    if made.withheld:
        return made.withheld
    if not task.has_test:
        return "no test split was read"
    if made.paired is None:
        return "no seed has all runs of both sides"
    if made.paired.num_seeds < MIN_SEEDS:
        return f"{made.paired.num_seeds} seeds, fewer than {MIN_SEEDS}"
    return None


def _best_against_best(task: Task, base: Comparison, side: Side, to: Side) -> Comparison:
    """Each side at its best setting on validation, over the seeds that all settings of both have.

    All runs of a setting stand or fall together, so that deleting or adding one cannot change which setting
    is chosen but by its seed, for both sides alike. A side with more settings has more chances to be lucky:
    where one has up to k times as many, p-values count k times (the chosen setting is also the best of one
    of k groups that are as large as the other side's grid).
    """
    methods = _as_method(task, side), _as_method(task, to)
    seeds = sorted(set(methods[0].common_seeds()) & set(methods[1].common_seeds()))
    left_out = [note for method in methods for note in _left_out(method, seeds)]
    for one, other in ((methods[0], methods[1]), (methods[1], methods[0])):
        alone = sorted(set(one.seeds) - set(other.seeds))
        if alone:
            left_out.append(f"only {one.name} has seeds {', '.join(map(str, alone))}, which are left out")
    grids = [method.usable() for method in methods]
    if not seeds:
        return replace(base, left_out=left_out)
    settings = [method.best(seeds) for method in methods]
    runs = [grid[setting] for grid, setting in zip(grids, settings, strict=True)]
    tried = (len(methods[0].grid), len(methods[1].grid))
    return replace(
        _of_cells(base, [(runs[0], runs[1])], seeds, math.ceil(max(tried) / min(tried))),
        settings=tuple(settings),
        tried=tried,
        left_out=left_out,
    )


def _left_out(method: Method, seeds: Sequence[int]) -> list[str]:
    notes = []
    usable = method.usable()
    for setting, runs in method.grid.items():
        if setting not in usable:
            done = sum(run is not None and measured(run) for run in runs.values())
            notes.append(f"{method.name} at {setting} has {done} of {len(runs)} seeds and is left out")
    for seed in method.seeds:
        lacking = [str(setting) for setting, runs in usable.items() if seed not in runs]
        if lacking and seed not in seeds:
            where = lacking[0] if len(lacking) == 1 else f"{len(lacking)} of {len(usable)} settings"
            notes.append(f"seed {seed} is left out: {method.name} lacks its run at {where}")
    return notes


def _matched(task: Task, base: Comparison, side: Side, question: Question) -> Comparison:
    """The mean over all pairs of runs that differ in nothing but what the sides name."""
    sides = (side, question.to)
    # A method's name says all flags that make up a method.
    named = {name for one in sides for name in (METHOD_FLAGS if isinstance(one, str) else one)}
    cells = [_by_cell(task, one, named) for one in sides]
    shared = [cell for cell in cells[0] if cell in cells[1]]
    seeds_of = {cell: set(cells[0][cell]) & set(cells[1][cell]) for cell in shared}
    most = max(map(len, seeds_of.values()), default=0)
    usable = [cell for cell in shared if seeds_of[cell] and 2 * len(seeds_of[cell]) >= most]
    if not usable:
        return replace(base, withheld="no pair of runs differs in nothing but what is compared")
    seeds = sorted(set.intersection(*(seeds_of[cell] for cell in usable)))
    everyone = set().union(*seeds_of.values())
    left_out = [f"seed {seed} is left out: not all pairs have it" for seed in sorted(everyone - set(seeds))]
    if len(usable) < len(shared):
        left_out.append(f"{len(shared) - len(usable)} of {len(shared)} pairs of settings lack most seeds")
    if not seeds:
        return replace(base, left_out=left_out)
    pairs = [(cells[0][cell], cells[1][cell]) for cell in usable]
    if question.measure == "range":
        made = _ranges(base, usable, pairs, seeds)
    else:
        made = _of_cells(base, pairs, seeds, 1)
    return replace(made, tried=(len(usable), len(usable)), left_out=left_out)


def _ranges(base: Comparison, cells: list[str], pairs: list[Any], seeds: list[int]) -> Comparison:
    """The range over the decay rates, lower is better, averaged over what else differs."""
    groups: dict[str, list[Any]] = {}
    for cell, pair in zip(cells, pairs, strict=True):
        about = json.loads(cell)
        if about.pop("decay", None):
            groups.setdefault(json.dumps(about), []).append(pair)
    groups = {key: found for key, found in groups.items() if len(found) > 1}
    if not groups:
        return replace(base, withheld="there are no two decay rates above 0 to take a range over")
    ranges = np.zeros((2, len(seeds)))
    for found in groups.values():
        for side in (0, 1):
            scores = np.array([[test_score(pair[side][seed]) for pair in found] for seed in seeds])
            ranges[side] += np.ptp(scores, axis=1) / len(groups)
    # Less is better, so that a positive difference speaks for the side that is compared.
    floor = granularity_floor(_num_images([run for pair in pairs for runs in pair for run in runs.values()]))
    return replace(base, paired=paired(ranges[1] - ranges[0], floor))


def _of_cells(
    base: Comparison, pairs: Sequence[tuple[Runs, Runs]], seeds: Sequence[int], chances: int
) -> Comparison:
    differences = np.mean([[test_score(a[s]) - test_score(b[s]) for s in seeds] for a, b in pairs], axis=0)
    runs = [[side[seed] for side in sides for seed in seeds] for sides in zip(*pairs, strict=True)]
    everyone = [run for side in runs for run in side]
    floor = granularity_floor(_num_images(everyone)) / math.sqrt(len(pairs))
    return replace(
        base,
        paired=paired(differences, floor, chances),
        diverged=(_diverged(runs[0]), _diverged(runs[1])),
        image_variance=_image_variance(*runs),
        withheld=_differing_data(everyone),
    )


def _diverged(runs: Sequence[Record]) -> int:
    return sum(run.outcome == "diverged" for run in runs)


def _differing_data(runs: Iterable[Record]) -> str | None:
    """Says if runs that are compared were not measured on the same images."""
    test: set[str] = set()
    by_seed: dict[tuple[int, str], set[str]] = {}
    for run in runs:
        rows = run.pairing.get("validation_rows")
        if run.data:
            test.add(run.data.fingerprints.get("test", ""))
            for split in ("train", "validation"):
                by_seed.setdefault((run.seed, split), set()).add(run.data.fingerprints.get(split, ""))
        elif rows:
            by_seed.setdefault((run.seed, "validation"), set()).add(rows)
    if len(test) > 1:
        return "the test images or labels differ between the runs"
    for (seed, split), found in by_seed.items():
        if len(found) > 1:
            return f"the {split} images or labels of seed {seed} differ between the runs"
    return None


def _image_variance(a: Sequence[Record], b: Sequence[Record]) -> float | None:
    """Variance over test images of the mean difference: that of the image's own mean difference, over N."""
    means = []
    for runs in (a, b):
        found = [correct_images(run) for run in runs]
        if any(one is None for one in found) or len({len(one) for one in found if one is not None}) != 1:
            return None
        means.append(np.mean(np.stack([one for one in found if one is not None]), axis=0))
    if means[0].shape != means[1].shape or len(means[0]) < 2:
        return None
    difference = means[0] - means[1]
    return float(difference.var(ddof=1) / len(difference))


def correct_images(run: Record) -> np.ndarray | None:
    """Which test images a run classified right, 0 or 1 [N]; None if its record does not tell."""
    if "test" not in run.correct or run.data is None or run.outcome == "diverged":
        return None
    bits = np.unpackbits(np.frombuffer(base64.b64decode(run.correct["test"]), np.uint8))
    return bits[: run.data.sizes["test"]].astype(np.float64)


def _num_images(runs: Iterable[Record]) -> int:
    """Number of test images; where records do not tell, the least that all accuracies are multiples of."""
    runs = list(runs)
    sizes = {run.data.sizes["test"] for run in runs if run.data and "test" in run.data.sizes}
    if sizes:
        return max(1, min(sizes))
    number = 1
    for run in runs:
        if run.outcome == "completed":
            number = math.lcm(number, Fraction(test_score(run)).limit_denominator(_MANY_IMAGES).denominator)
            if number > _MANY_IMAGES:
                return _MANY_IMAGES
    return number


def test_score(run: Record) -> float:
    """Accuracy on test; on validation if no test split was read, in which case there is no verdict."""
    score = run.score("test")
    fallback = run.score("validation") if score is None else score
    assert fallback is not None
    return fallback


def _as_method(task: Task, side: Side) -> Method:
    if isinstance(side, str):
        return task.methods[side]
    grid: dict[Setting, dict[int, Record | None]] = {}
    for method in task.methods.values():
        for setting, runs in method.grid.items():
            for seed, run in runs.items():
                if run is not None and _fits(run, side):
                    if seed in grid.setdefault(setting, {}):
                        raise BadInputError(
                            f"{side_name(side)} is several methods: name one, or ask at: equal"
                        )
                    grid[setting][seed] = run
    return Method(side_name(side), grid)


def has_runs(task: Task, side: Side) -> bool:
    """Whether a task has runs of a side."""
    if isinstance(side, str):
        return side in task.methods
    return any(_fits(run, side) for run in task.records)


def _fits(run: Record, side: Mapping[str, Any]) -> bool:
    """Whether a run has these settings; controls and baselines from elsewhere have only if they are named."""
    if "peer" not in side and run.settings.get("peer"):
        return False
    return all((run.settings.get(name) or False) == value for name, value in side.items())


def _by_cell(task: Task, side: Side, named: set[str]) -> dict[str, dict[int, Record]]:
    """What else a run is -> seed -> run, for the runs of a side."""
    cells: dict[str, dict[int, Record]] = {}
    methods = [task.methods[side]] if isinstance(side, str) else task.methods.values()
    for method in methods:
        for setting, runs in method.grid.items():
            for seed, run in runs.items():
                if run is None or not measured(run) or not (isinstance(side, str) or _fits(run, side)):
                    continue
                about = {name: run.settings.get(name) for name in METHOD_FLAGS - named}
                about |= {} if named & {"weight_decay", "total_decay"} else {"decay": setting.decay}
                about |= {} if "learning_rate" in named else {"learning_rate": setting.learning_rate}
                cells.setdefault(json.dumps(about, sort_keys=True), {})[seed] = run
    return cells
