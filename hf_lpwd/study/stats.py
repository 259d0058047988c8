"""Statistics over paired seeds: intervals, difference and equivalence tests, Holm's correction, power.

Scores are accuracies in 0..1, one for each seed. The distributions are scipy's; what scipy lacks is a t test
whose variance has a floor, and Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
#: With fewer seeds there is no verdict.
MIN_SEEDS = 5
# Runs of a task are repeated to no more than this.
_MANY_RUNS = 1000

Array: TypeAlias = NDArray[np.float64]
Verdict: TypeAlias = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; the bounds are NaN where there are too few seeds for one."""

    value: float
    low: float
    high: float

    def clipped(self) -> Estimate:
        """The same with bounds inside 0..1, where an accuracy is."""
        return Estimate(self.value, *(min(max(bound, 0.0), 1.0) for bound in (self.low, self.high)))


@dataclass(frozen=True)
class Paired:
    """A mean difference over seeds, and what the t distribution says about it: NaN, if there is one seed.

    Attributes:
        num_seeds: n.
        mean: Of the differences.
        error: Its standard error, not below the floor.
        chances: How many equal chances the side with more settings had; multiplies each p-value.
        floor: What the standard deviation of the differences is not taken below.
    """

    num_seeds: int
    mean: float
    error: float
    chances: int = 1
    floor: float = 0.0

    @property
    def df(self) -> int:
        """Degrees of freedom."""
        return self.num_seeds - 1

    def interval(self, extra_variance: float = 0.0) -> Estimate:
        """The 95% t interval; `extra_variance` of the mean, that of the test images, widens it."""
        half = float(stats.t.isf((1.0 - CONFIDENCE) / 2.0 / self.chances, self.df))
        half *= math.sqrt(self.error**2 + extra_variance)
        return Estimate(self.mean, self.mean - half, self.mean + half)

    def p_difference(self) -> float:
        """Two-sided p-value of a mean of zero."""
        return float(np.minimum(1.0, self.chances * 2.0 * stats.t.sf(abs(self.mean) / self.error, self.df)))

    def p_equivalence(self, margin: float) -> float:
        """p-value of a mean at or beyond the margin: two one-sided tests (TOST, Schuirmann 1987)."""
        nearest = (margin - abs(self.mean)) / self.error
        return float(np.minimum(1.0, self.chances * stats.t.sf(nearest, self.df)))

    def detectable(self, num_tests: int) -> float:
        """The smallest true difference that such runs find with 80% power, at the first of Holm's tests."""
        if self.num_seeds < 2:
            return math.nan
        return self.error * smallest_shift(self.num_seeds, num_tests * self.chances)


def paired(differences: ArrayLike, floor: float = 0.0, chances: int = 1) -> Paired:
    """Summarises differences over seeds.

    Args:
        differences: Method - baseline, by seed [n].
        floor: The smallest standard deviation that differences of such scores can have, see
            `granularity_floor`.
        chances: See `Paired`.
    """
    values = np.asarray(differences, dtype=np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    error = max(std, floor, 1e-300) / math.sqrt(max(len(values), 1))
    return Paired(len(values), float(values.mean()), error, chances, floor)


def granularity_floor(num_images: int) -> float:
    """Standard deviation that rounding both accuracies to whole images alone gives their difference.

    ``(1 / N) / sqrt(6)``: each rounding error is uniform over 1 / N. Without it, equal differences would
    have no variance.
    """
    return 1.0 / num_images / math.sqrt(6.0)


def mean_interval(values: ArrayLike) -> Estimate:
    """Mean over seeds with Student's t interval: ``mean +- t * s / sqrt(n)``, n - 1 degrees of freedom.

    Example:
        >>> estimate = mean_interval([0.80, 0.82, 0.81])
        >>> round(estimate.value, 3), round(estimate.low, 3), round(estimate.high, 3)
        (0.81, 0.785, 0.835)
    """
    return paired(values).interval()


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down correction: the probability of any false finding in the family stays at the level.

    The k-th smallest of m p-values is multiplied by m - k + 1, made monotone from the smallest on, and cut
    at 1. NaN (no test was made) stays NaN; it counts as a test, so that leaving one out gains nothing.

    Args:
        p_values: [m].

    Returns:
        Adjusted p-values [m], in the same order.

    Source: Holm, *A Simple Sequentially Rejective Multiple Test Procedure* (1979).
    """
    given = np.asarray(p_values, dtype=np.float64)
    filled = np.where(np.isnan(given), 1.0, given)
    order = np.argsort(filled, kind="stable")
    adjusted = np.empty(len(given))
    steps = np.maximum.accumulate(filled[order] * np.arange(len(given), 0, -1))
    adjusted[order] = np.minimum(steps, 1.0)
    return np.where(np.isnan(given), np.nan, adjusted)


def verdict(mean: float, p_difference: float, p_equivalence: float) -> Verdict:
    """What two corrected p-values allow to be said; equivalence goes first: the margin says what matters."""
    level = 1.0 - CONFIDENCE
    if p_equivalence <= level:
        return "equivalent"
    if p_difference <= level:
        return "better" if mean > 0.0 else "worse"
    return "undecided"


def smallest_shift(num_seeds: int, num_tests: int = 1) -> float:
    """The true mean, in standard errors, that the two-sided t test of n >= 2 seeds finds with 80% power.

    The level is divided by the number of tests.
    """
    return float(optimize.brentq(lambda x: t_power(num_seeds, x, num_tests) - POWER, 0.0, 1e4))


def t_power(num_seeds: int, shift: float, num_tests: int = 1) -> float:
    """Power of the two-sided t test of n differences whose mean is `shift` standard errors from zero."""
    df = num_seeds - 1
    critical = stats.t.isf((1.0 - CONFIDENCE) / 2.0 / num_tests, df)
    # Above 5 the other tail is nothing, and scipy gives NaN for it.
    other_tail = 0.0 if shift > 5.0 else stats.nct.cdf(-critical, df, shift)
    return float(stats.nct.sf(critical, df, shift) + other_tail)


def interquartile_mean(scores: list[Array]) -> Estimate:
    """Interquartile mean over all runs of several tasks, with a bootstrap interval stratified by task.

    Each task weighs the same: where one has fewer runs, these are repeated.

    Args:
        scores: For each task the scores of its seeds [n].

    Source: Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice* (2021).
    """
    sizes = [len(sample) for sample in scores]
    common = min(math.lcm(*sizes), _MANY_RUNS)
    times = [max(1, round(common / size)) for size in sizes]

    def statistic(*samples: Array, axis: int = -1) -> Array:
        weighed = [np.repeat(one, number, axis=axis) for one, number in zip(samples, times, strict=True)]
        return np.asarray(stats.trim_mean(np.concatenate(weighed, axis=axis), 0.25, axis=axis))

    return Estimate(*map(float, _bootstrapped(scores, statistic)))


def performance_profile(scores: list[Array], thresholds: Array) -> tuple[Array, Array, Array]:
    """Fraction of runs above each threshold, mean over tasks, with pointwise intervals stratified by task.

    ``F(tau) = 1/M * sum over tasks m of 1/N_m * sum over runs n of [score_mn > tau]``

    Args:
        scores: For each task the scores of its seeds [n].
        thresholds: tau [t].

    Returns:
        Fractions, and lower and upper bounds of their 95% bootstrap intervals, each [t]; the bounds are
        NaN if a task has one run.

    Source: as `interquartile_mean`.

    Example:
        >>> performance_profile([np.array([0.1, 0.3]), np.array([0.3, 0.4])], np.array([0.0, 0.1, 0.3]))[0]
        array([1.  , 0.75, 0.25])
    """

    def statistic(*samples: Array, axis: int = -1) -> Array:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    return _bootstrapped([sample > thresholds[:, None] for sample in scores], statistic)


def _bootstrapped(samples: Sequence[Any], statistic: Callable[..., Array]) -> tuple[Array, Array, Array]:
    """A statistic of several samples, and the bounds of its percentile interval; each sample is resampled."""
    value = statistic(*samples)
    if any(sample.shape[-1] < 2 for sample in samples):
        return value, np.full_like(value, math.nan), np.full_like(value, math.nan)
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=2000,
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return value, found.low, found.high
