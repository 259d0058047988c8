"""Statistics over seeds: intervals, paired differences, corrected p-values, robustness, power.

Scores are accuracies in 0..1, one for each seed; arrays that are compared have the same seeds in the same
order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

CONFIDENCE = 0.95
#: The difference that the power line asks about: 0.1 points of accuracy.
SMALL_DIFFERENCE = 0.001
POWER = 0.8
NUM_RESAMPLES = 2000

Array: TypeAlias = NDArray[np.float64]
Verdict: TypeAlias = Literal["better", "worse", "no difference found", "too few seeds"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; the bounds are NaN where there are too few seeds for one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, on the same seeds.

    Attributes:
        num_seeds: n, the seeds that both have.
        difference: Mean of method - baseline, with its t interval.
        bootstrap: The same with its bootstrap interval.
        p_value: Of the paired test, not corrected.
        adjusted_p_value: Holm's, over the table that the comparison belongs to.
        improvement: Probability that a run of the method beats a run of the baseline.
        seeds_needed: How many seeds it takes to see a difference of 0.1 points; None where the differences
            of the seeds do not vary, or there is one.
        verdict: In words, at the confidence asked for.
    """

    num_seeds: int
    difference: Estimate
    bootstrap: Estimate
    p_value: float
    adjusted_p_value: float
    improvement: Estimate
    seeds_needed: int | None
    verdict: Verdict


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Mean over seeds with Student's t interval: ``mean +- t * s / sqrt(n)``, n - 1 degrees of freedom.

    Args:
        values: Scores [n], n >= 1.
        confidence: Probability that the interval covers the mean.
    """
    scores = _one_dimensional(values)
    mean = float(scores.mean())
    if len(scores) < 2:
        return Estimate(mean, math.nan, math.nan)
    quantile = stats.t.ppf((1.0 + confidence) / 2.0, len(scores) - 1)
    half = float(quantile * scores.std(ddof=1) / math.sqrt(len(scores)))
    return Estimate(mean, mean - half, mean + half)


def bootstrap_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean over seeds with the percentile interval of its bootstrap distribution.

    With few seeds it is too narrow (by a factor of about ``sqrt((n - 1) / n)``, and more in the tails): the
    t interval decides, this one shows what it would be without the assumption of normality.

    Args:
        values: Scores, or differences of scores [n], n >= 1.
        confidence: Probability that the interval covers the mean.
        num_resamples: How many means are drawn.
        seed: Of the resampling.
    """
    scores = _one_dimensional(values)
    if len(scores) < 2:
        return Estimate(float(scores.mean()), math.nan, math.nan)
    means = scores[_resampled(len(scores), num_resamples, seed)].mean(axis=1)
    return Estimate(float(scores.mean()), *_percentiles(means, confidence))


def paired_p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of a mean difference of zero: the paired t test.

    Where all differences are equal, so that there is no variance to judge by, it is that of the exact
    sign-flip test, ``2^(1 - n)``, and 1 where all are zero.

    Args:
        differences: Method - baseline, by seed [n]; NaN for n < 2.
    """
    values = _one_dimensional(differences)
    if len(values) < 2:
        return math.nan
    if np.ptp(values) <= 1e-12:
        return 1.0 if abs(values[0]) <= 1e-12 else 2.0 ** (1 - len(values))
    t = values.mean() / (values.std(ddof=1) / math.sqrt(len(values)))
    return float(2.0 * special.stdtr(len(values) - 1, -abs(t)))


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down correction: the probability of any false finding in the table stays at the level.

    The k-th smallest of m p-values is multiplied by m - k + 1, made monotone from the smallest on, and cut
    at 1. NaN (no test was made) stays NaN and does not count.

    Args:
        p_values: [m].

    Returns:
        Adjusted p-values [m], in the same order.

    Source: Holm, *A Simple Sequentially Rejective Multiple Test Procedure* (1979).
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return adjusted


def probability_of_improvement(
    method: ArrayLike,
    baseline: ArrayLike,
    confidence: float = CONFIDENCE,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Probability that a run of the method scores higher than a run of the baseline; a tie counts half.

    The Mann-Whitney statistic over n^2, with a percentile interval from resampling the seeds.

    Args:
        method: Scores [n].
        baseline: Scores [n], of the same seeds.
        confidence: Of the interval.
        num_resamples: How many resamples are drawn.
        seed: Of the resampling.

    Source: Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice* (2021).
    """
    x, y = _same_seeds(method, baseline)
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    if len(x) < 2:
        return Estimate(float(wins.mean()), math.nan, math.nan)
    rows = _resampled(len(x), num_resamples, seed)
    # Each resample counts seed i as often as it drew it: the mean over its pairs is a quadratic form.
    weights = np.stack([(rows == i).sum(axis=1) for i in range(len(x))], axis=1) / len(x)
    means = ((weights @ wins) * weights).sum(axis=1)
    return Estimate(float(wins.mean()), *_percentiles(means, confidence))


def seeds_needed(
    std: float, difference: float = SMALL_DIFFERENCE, power: float = POWER, confidence: float = CONFIDENCE
) -> int:
    """Smallest number of seeds at which the paired t test finds a true difference with probability `power`.

    From the noncentral t distribution; for one comparison, without a correction for several.

    Args:
        std: Standard deviation of the paired differences.
        difference: The true mean difference, not 0.
        power: Probability of finding it.
        confidence: 1 - the level of the test.
    """
    if std < 0.0 or difference == 0.0 or not 0.0 < power < 1.0:
        raise ValueError(f"no number of seeds for std {std}, difference {difference} and power {power}")
    if std == 0.0:
        return 2
    high = 2
    while paired_power(high, std, difference, confidence) < power:
        high *= 2
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        if paired_power(middle, std, difference, confidence) < power:
            low = middle
        else:
            high = middle
    return high


def paired_power(num_seeds: int, std: float, difference: float, confidence: float = CONFIDENCE) -> float:
    """Probability that the two-sided paired t test of n seeds finds a true difference.

    Args:
        num_seeds: n >= 2.
        std: Standard deviation of the paired differences, above 0.
        difference: The true mean difference.
        confidence: 1 - the level of the test.
    """
    shift = abs(difference) / std * math.sqrt(num_seeds)
    critical = stats.t.ppf((1.0 + confidence) / 2.0, num_seeds - 1)
    distribution = stats.nct(num_seeds - 1, shift)
    return float(distribution.sf(critical) + distribution.cdf(-critical))


def compare_to_baseline(
    scores: Mapping[str, Mapping[int, float]], baseline: str, confidence: float = CONFIDENCE
) -> dict[str, Comparison]:
    """Compares each method with the baseline on the seeds that both have, with Holm's correction over all.

    Args:
        scores: Method -> seed -> test score.
        baseline: A key of `scores`.
        confidence: Of the intervals, and 1 - the level of the verdicts.

    Returns:
        Method -> comparison, for every other method that shares a seed with the baseline.

    Raises:
        ValueError: There is no such baseline.
    """
    if baseline not in scores:
        raise ValueError(f"baseline is {baseline!r}, but the methods are {', '.join(scores)}")
    pairs = {}
    for method, by_seed in scores.items():
        seeds = sorted(by_seed.keys() & scores[baseline].keys())
        if method != baseline and seeds:
            pairs[method] = _same_seeds(
                [by_seed[seed] for seed in seeds], [scores[baseline][seed] for seed in seeds]
            )
    p_values = [paired_p_value(x - y) for x, y in pairs.values()]
    comparisons = {}
    for (method, (x, y)), p_value, adjusted in zip(pairs.items(), p_values, holm(p_values), strict=True):
        difference = mean_interval(x - y, confidence)
        std = float((x - y).std(ddof=1)) if len(x) > 1 else 0.0
        comparisons[method] = Comparison(
            num_seeds=len(x),
            difference=difference,
            bootstrap=bootstrap_interval(x - y, confidence),
            p_value=p_value,
            adjusted_p_value=float(adjusted),
            improvement=probability_of_improvement(x, y, confidence),
            seeds_needed=seeds_needed(std) if std > 1e-12 else None,
            verdict=_verdict(difference.value, float(adjusted), confidence),
        )
    return comparisons


def _verdict(difference: float, adjusted_p_value: float, confidence: float) -> Verdict:
    if math.isnan(adjusted_p_value):
        return "too few seeds"
    if adjusted_p_value > 1.0 - confidence:
        return "no difference found"
    return "better" if difference > 0.0 else "worse"


def _one_dimensional(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or np.isnan(array).any():
        raise ValueError(f"scores must be a list of one or more numbers, not {values!r}")
    return array


def _same_seeds(method: ArrayLike, baseline: ArrayLike) -> tuple[Array, Array]:
    x, y = _one_dimensional(method), _one_dimensional(baseline)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} scores cannot be paired with {len(y)}: give those of the same seeds")
    return x, y


def _resampled(size: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(size, size=(num_resamples, size))


def _percentiles(values: Array, confidence: float) -> tuple[float, float]:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)
