"""Statistics over seeds: values by hand, and those of the noncentral t distribution from tables."""

import math

import numpy as np
import pytest

from hf_lpwd.study.results import best_epochs_mean, decay_robustness
from hf_lpwd.study.stats import (
    Estimate,
    granularity_floor,
    holm,
    interquartile_mean,
    mean_interval,
    paired,
    performance_profile,
    smallest_shift,
    t_power,
    verdict,
)


def test_the_interval_by_hand():
    """Mean 3, standard deviation 2, n = 4: 3 +- 3.18245 * 2 / 2."""
    estimate = mean_interval([1.0, 3.0, 5.0, 3.0])
    std = math.sqrt(8.0 / 3.0)
    assert estimate.value == 3.0
    assert estimate.high == pytest.approx(3.0 + 3.182446 * std / 2.0, rel=1e-6)
    assert estimate.low == pytest.approx(3.0 - 3.182446 * std / 2.0, rel=1e-6)
    single = mean_interval([0.5])
    assert (single.value, math.isnan(single.low), math.isnan(single.high)) == (0.5, True, True)


def test_difference_and_equivalence_by_hand():
    """n = 5, mean 0.002, standard error 0.001: t = 2, p = 0.116; inside 0.005, t = 3 with p = 0.020."""
    values = paired(0.002 + 0.001 * math.sqrt(5.0) * np.array([-1.0, -1.0, 0.0, 1.0, 1.0]))
    assert values.error == pytest.approx(0.001)
    assert values.p_difference() == pytest.approx(0.116117, abs=1e-6)
    assert values.p_equivalence(0.005) == pytest.approx(0.019971, abs=1e-6)
    assert values.p_equivalence(0.002) == 0.5
    # Three chances count three times.
    assert paired([0.0, 1.0, 2.0], chances=3).p_difference() == pytest.approx(3 * 0.225403, abs=1e-5)


def test_rounding_to_whole_images_gives_the_floor():
    generator = np.random.default_rng(0)
    exact = generator.uniform(0.5, 0.6, (2, 200_000))
    rounded = np.round(exact * 500) / 500
    error = (rounded[0] - rounded[1]) - (exact[0] - exact[1])
    assert error.std() == pytest.approx(granularity_floor(500), rel=0.01)
    assert paired([0.1, 0.1], floor=0.02).error == pytest.approx(0.02 / math.sqrt(2.0))


def test_holm_by_hand():
    """0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, made monotone; a test that was not made counts."""
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, math.nan]).tolist() == pytest.approx([0.02, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ((0.2, 0.2), "undecided"),
        ((0.01, 0.2), "better"),
        ((0.2, 0.01), "equivalent"),
        ((0.01, 0.01), "equivalent"),
    ],
)
def test_verdicts(p_values, expected):
    assert verdict(0.1, *p_values) == expected
    assert verdict(-0.1, *p_values) == expected.replace("better", "worse")


@pytest.mark.parametrize(("num_seeds", "num_tests"), [(5, 1), (5, 6), (10, 1), (10, 42)])
def test_what_is_detectable_is_found_at_80_percent(num_seeds, num_tests):
    """100,000 studies whose true difference is the smallest that `smallest_shift` promises."""
    shift = smallest_shift(num_seeds, num_tests) / math.sqrt(num_seeds)
    draws = np.random.default_rng(1).normal(shift, 1.0, (100_000, num_seeds))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(num_seeds))
    critical = {(5, 1): 2.776445, (5, 6): 4.851, (10, 1): 2.262157, (10, 42): 4.636}[num_seeds, num_tests]
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.006)
    assert t_power(num_seeds, 0.0, num_tests) == pytest.approx(0.05 / num_tests)
    assert 0.99 < t_power(num_seeds, 31.0) <= 1.0


def test_the_interquartile_mean():
    tasks = [np.array([0.0, 0.4]), np.array([0.5, 1.0])]
    assert interquartile_mean(tasks).value == pytest.approx(0.45)
    assert interquartile_mean([np.array([0.3]), np.array([0.5])]).value == pytest.approx(0.4)
    assert Estimate(0.99, 0.9, 1.1).clipped() == Estimate(0.99, 0.9, 1.0)


def test_the_performance_profile_by_hand():
    """Task 1 has scores 0.1, 0.3, 0.5, 0.5, task 2 has 0.3, 0.7; a score at the threshold is not above it."""
    tasks = [np.array([0.1, 0.3, 0.5, 0.5]), np.array([0.7, 0.3])]
    fractions, low, high = performance_profile(tasks, np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.7]))
    assert fractions.tolist() == [1.0, 0.875, 0.875, 0.5, 0.25, 0.0]
    # Where all runs or none are above, so are all resamples.
    assert (low[0], high[0], low[-1], high[-1]) == (1.0, 1.0, 0.0, 0.0)
    # Task 2 resampled: none, one or both of two runs above 0.5, with probabilities 1/4, 1/2 and 1/4.
    assert (low[4], high[4]) == (0.0, 0.5)
    assert np.isnan(performance_profile([tasks[0], tasks[1][:1]], np.array([0.2]))[1:]).all()


def test_decay_robustness_by_hand():
    # Rates 0.1, 1, 10 are evenly spaced in log: the area is ((a + b) / 2 + (b + c) / 2) / 2.
    robustness = decay_robustness([[0.5, 0.4, 0.7], [0.7, 0.6, 0.7]], [1.0, 0.1, 10.0])
    assert robustness.worst.value == pytest.approx(0.5)
    assert robustness.range.value == pytest.approx((0.3 + 0.1) / 2)
    assert robustness.area.value == pytest.approx((0.525 + 0.675) / 2)
    assert robustness.area.high - robustness.area.value == pytest.approx(12.7062047 * 0.075)


def test_the_papers_metric():
    assert best_epochs_mean([0.1, 0.5, 0.3, 0.4], best=2) == pytest.approx(0.45)
    assert best_epochs_mean(np.arange(12) / 10) == pytest.approx(sum(range(2, 12)) / 100)
    assert best_epochs_mean([0.2, 0.4]) == pytest.approx(0.3)
