"""A comparison of two sides on one task, the mean of several, and the correction over a family of them."""

from __future__ import annotations

import base64
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from hf_lpwd.messages import counted
from hf_lpwd.study.plan import Question, Side
from hf_lpwd.study.record import Record, test_score
from hf_lpwd.study.stats import MIN_SEEDS, Estimate, Paired, Verdict, holm, paired, verdict
from hf_lpwd.study.tasks import Setting, shared_seeds

#: What the mean over tasks is called where a task stands.
OVER_TASKS = "mean over tasks"
#: Why there is no verdict where the accuracies are those on validation.
NO_TEST = "no test split was read"
_MANY_IMAGES = 100_000


@dataclass(frozen=True)
class Comparison:
    """One side of a question against the other, on one task.

    Attributes:
        task: Its name.
        name: Of the side that is compared.
        to: Of the side that it is compared to.
        question: What was asked.
        paired: The differences, in 0..1; None if no seed has both sides.
        by_seed: The difference of each seed that counts.
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
    question: Question
    paired: Paired | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict)
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
    def margin(self) -> float:
        """The difference that would matter, in 0..1."""
        return self.question.margin / 100.0

    @property
    def verdict(self) -> Verdict:
        """What can be said, corrected over the family."""
        if self.withheld or self.paired is None or not self.question.verdict:
            return "undecided"
        return verdict(self.paired.mean, self.p_difference, self.p_equivalence)

    @property
    def split(self) -> str:
        """Of the accuracies: validation if no test split was read."""
        return "validation" if self.withheld == NO_TEST else "test"

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


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's correction over a family, of the tests for a difference and of those for equivalence."""
    raw = [(c, c.paired if c.withheld is None and c.question.verdict else None) for c in comparisons]
    differences = holm([p.p_difference() if p else math.nan for _, p in raw])
    equivalences = holm([p.p_equivalence(c.margin) if p else math.nan for c, p in raw])
    return [
        replace(c, p_difference=float(d), p_equivalence=float(e), num_tests=len(raw))
        for c, d, e in zip(comparisons, differences, equivalences, strict=True)
    ]


def over_tasks(made: Sequence[Comparison], tasks: Sequence[str]) -> Comparison:
    """The mean over the tasks that have a verdict, by each seed that all of them have."""
    used = [c for c in made if c.withheld is None and c.paired is not None]
    base = Comparison(OVER_TASKS, made[0].name, made[0].to, made[0].question)
    left_out = [f"{c.task} is left out: {c.withheld}" for c in made if c not in used]
    lacking = [task for task in tasks if task not in {c.task for c in made}]
    left_out += [f"{task} is left out: there is no run of {base.name}" for task in lacking]
    if len(used) < 2:
        return replace(base, withheld="fewer than two tasks have a verdict", left_out=left_out)
    seeds = shared_seeds(c.by_seed for c in used)
    alone = sorted(set().union(*(c.by_seed for c in used)) - set(seeds))
    if alone:
        left_out.append(f"seeds {', '.join(map(str, alone))} are left out: not all tasks have them")
    parts = [c.paired for c in used if c.paired is not None]
    by_seed = {seed: float(np.mean([c.by_seed[seed] for c in used])) for seed in seeds}
    floor = math.sqrt(sum(part.floor**2 for part in parts)) / len(parts)
    return replace(
        base,
        paired=paired(list(by_seed.values()), floor, max(part.chances for part in parts)) if seeds else None,
        by_seed=by_seed,
        tried=(sum(c.tried[0] for c in used), sum(c.tried[1] for c in used)),
        diverged=(sum(c.diverged[0] for c in used), sum(c.diverged[1] for c in used)),
        left_out=[f"mean over {len(used)} of {len(tasks)} tasks", *left_out],
        withheld=too_few(len(seeds)),
    )


def side_name(side: Side) -> str:
    """What a side is called: the method, or its settings."""
    if isinstance(side, str):
        return side
    return ", ".join(f"{key}={value}" for key, value in side.items())


def too_few(seeds: int) -> str | None:
    """Says if there are too few seeds for a verdict."""
    return f"{counted(seeds, 'seed')}, fewer than {MIN_SEEDS}" if seeds < MIN_SEEDS else None


def untested(runs: Sequence[Record]) -> str | None:
    """Says if some runs have accuracies on test, and others on validation alone."""
    number = sum(run.score("test") is None for run in runs)
    if number == len(runs):
        return NO_TEST
    return f"{number} of {counted(len(runs), 'run')} have no test accuracy" if number else None


def differing_data(runs: Iterable[Record], may_differ: Container[str]) -> str | None:
    """Says if runs of one seed were not made and measured on the same images; seeds may draw their own."""
    found: dict[tuple[int, str], set[str]] = {}
    for run in runs:
        rows = run.pairing.get("validation_rows")
        prints = {"validation": rows} if rows else {}
        for split, value in (run.data.fingerprints if run.data else prints).items():
            found.setdefault((run.seed, split), set()).add(value)
    for (seed, split), values in found.items():
        if len(values) > 1 and split not in may_differ:
            return f"the {split} images or labels of seed {seed} differ between the runs"
    return None


def differing_devices(runs: Iterable[Record]) -> str | None:
    """Says if runs of one seed used different numbers of devices, and so batches of different sizes."""
    found: dict[int, set[int]] = {}
    for run in runs:
        if run.environment and run.environment.devices is not None:
            found.setdefault(run.seed, set()).add(run.environment.devices)
    for seed, numbers in found.items():
        if len(numbers) > 1:
            listed = " and ".join(map(str, sorted(numbers)))
            return f"the runs of seed {seed} used {listed} devices, and so batches of different sizes"
    return None


def image_variance(a: Sequence[Record], b: Sequence[Record]) -> float | None:
    """Variance over test images of the mean difference: that of the image's own mean difference, over N."""
    tests = {run.data.fingerprints.get("test") for run in (*a, *b) if run.data}
    if len(tests) > 1:
        # Each seed has test images of its own.
        return None
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


def num_images(runs: Iterable[Record]) -> int:
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
