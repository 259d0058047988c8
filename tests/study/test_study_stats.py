"""Statistics against numbers worked by hand, against scipy, and in simulation."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from hf_lpwd.study.selection import best_epochs_mean, decay_robustness, select_on_validation
from hf_lpwd.study.stats import (
    bootstrap_interval,
    compare_to_baseline,
    holm,
    mean_interval,
    paired_p_value,
    paired_power,
    probability_of_improvement,
    seeds_needed,
)


def test_mean_interval_by_hand():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.302652729911275: half width 4.302652729911275 / sqrt(3).
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.low == pytest.approx(2.0 - 2.484137711)
    assert estimate.high == pytest.approx(2.0 + 2.484137711)


def test_mean_interval_is_scipys():
    values = np.random.default_rng(1).normal(0.7, 0.02, 8)
    interval = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    estimate = mean_interval(values, confidence=0.9)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))


def test_one_seed_has_no_interval():
    assert mean_interval([0.5]).value == 0.5
    assert math.isnan(mean_interval([0.5]).low)
    assert math.isnan(bootstrap_interval([0.5]).high)
    assert math.isnan(paired_p_value([0.1]))


@pytest.mark.parametrize("values", [[], [[1.0]], [math.nan]])
def test_scores_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="scores must be a list"):
        mean_interval(values)


def test_bootstrap_interval_by_hand():
    # Means of two draws from {0, 1}: 0, 0.5, 1 with probability 1/4, 1/2, 1/4, so 95% of them are in 0..1.
    estimate = bootstrap_interval([0.0, 1.0])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_bootstrap_interval_is_scipys():
    values = np.random.default_rng(2).normal(0.0, 1.0, 12)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
    ).confidence_interval
    estimate = bootstrap_interval(values, num_resamples=20_000)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_paired_p_value_by_hand():
    # t = mean / (s / sqrt(n)) = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: for these the
    # distribution is closed, p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14).
    assert paired_p_value([1.0, 2.0, 3.0]) == pytest.approx(1.0 - math.sqrt(12.0 / 14.0))


def test_paired_p_value_is_scipys():
    generator = np.random.default_rng(4)
    x, y = generator.normal(0.7, 0.02, (2, 6))
    assert paired_p_value(x - y) == pytest.approx(scipy_stats.ttest_rel(x, y).pvalue)


def test_paired_p_value_without_variance_is_the_sign_flip_tests():
    assert paired_p_value([0.0, 0.0, 0.0]) == 1.0
    assert paired_p_value([0.1, 0.1, 0.1]) == 0.25


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (kept monotone), 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.7, 0.8]) == pytest.approx([1.0, 1.0])


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.02, math.nan, 0.01])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(adjusted[1])
    assert len(holm([])) == 0


def test_probability_of_improvement_by_hand():
    # Against 0, 2, 2: 1 beats one; 2 beats one and ties two; 3 beats three.
    estimate = probability_of_improvement([1.0, 2.0, 3.0], [0.0, 2.0, 2.0])
    assert estimate.value == pytest.approx((1 + 0 + 0 + 1 + 0.5 + 0.5 + 3) / 9)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_probability_of_improvement_is_mann_whitneys():
    x, y = np.random.default_rng(5).normal(0.7, 0.02, (2, 7)).round(2)
    expected = scipy_stats.mannwhitneyu(x, y).statistic / 49
    assert probability_of_improvement(x, y).value == pytest.approx(expected)


def test_probability_of_improvement_resamples_pairs():
    x, y = np.random.default_rng(6).normal(0.7, 0.02, (2, 5))
    rows = np.random.default_rng(0).integers(5, size=(2000, 5))
    means = [np.mean(x[row][:, None] > y[row][None, :]) for row in rows]
    estimate = probability_of_improvement(x, y)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    certain = probability_of_improvement([1.0, 2.0], [0.0, 0.5])
    assert (certain.low, certain.value, certain.high) == pytest.approx((1.0, 1.0, 1.0))


# The sizes of the textbook (Cohen 1988; G*Power): two-sided paired t test, level 0.05, power 0.8.
@pytest.mark.parametrize(("effect", "number"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_is_the_textbooks(effect, number):
    assert seeds_needed(1.0, effect) == number
    assert paired_power(number - 1, 1.0, effect) < 0.8 <= paired_power(number, 1.0, effect)


def test_seeds_needed_to_see_a_tenth_of_a_point():
    assert seeds_needed(0.002) == 34
    assert seeds_needed(0.0) == 2
    with pytest.raises(ValueError, match="difference 0"):
        seeds_needed(0.1, 0.0)


def test_select_on_validation():
    assert select_on_validation([[0.5, 0.7], [0.65, 0.6], [0.1, 0.2]]) == 1
    assert select_on_validation([[0.5, 0.7], [0.9, math.nan]]) == 0
    assert select_on_validation([[math.nan, 0.7], [0.9, math.nan]]) == 1
    with pytest.raises(ValueError, match="no run has a validation score"):
        select_on_validation([[math.nan]])


def test_decay_robustness_by_hand():
    # Rates 0.1, 1, 10 are evenly spaced in log: the area is ((a + b) / 2 + (b + c) / 2) / 2.
    robustness = decay_robustness([[0.5, 0.4, 0.7], [0.7, 0.6, 0.7]], [1.0, 0.1, 10.0])
    assert robustness.worst.value == pytest.approx(0.5)
    assert robustness.range.value == pytest.approx((0.3 + 0.1) / 2)
    assert robustness.area.value == pytest.approx((0.525 + 0.675) / 2)
    assert robustness.area.high - robustness.area.value == pytest.approx(12.7062047 * 0.075)


@pytest.mark.parametrize("decays", [[0.0, 1.0], [1.0, 1.0], [1.0], [1.0, 2.0, 3.0]])
def test_decay_robustness_refuses(decays):
    with pytest.raises(ValueError, match="decay rates"):
        decay_robustness([[0.5, 0.4]], decays)


def test_the_papers_metric():
    assert best_epochs_mean([0.1, 0.5, 0.3, 0.4], best=2) == pytest.approx(0.45)
    assert best_epochs_mean(np.arange(12) / 10) == pytest.approx(sum(range(2, 12)) / 100)
    assert best_epochs_mean([0.2, 0.4]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="test_scores"):
        best_epochs_mean([])


def table(*offsets, seeds=8):
    generator = np.random.default_rng(7)
    base = generator.normal(0.7, 0.02, seeds)
    rows = [base, *(base + offset + generator.normal(0.0, 0.002, seeds) for offset in offsets)]
    return {f"m{i}": dict(enumerate(row.tolist())) for i, row in enumerate(rows)}


def test_compare_to_baseline():
    compared = compare_to_baseline(table(0.02, -0.02, 0.0), "m0")
    assert [comparison.verdict for comparison in compared.values()] == [
        "better",
        "worse",
        "no difference found",
    ]
    p_values = [comparison.p_value for comparison in compared.values()]
    assert [comparison.adjusted_p_value for comparison in compared.values()] == pytest.approx(holm(p_values))
    assert compared["m1"].difference.low > 0.015
    assert compared["m1"].bootstrap.value == compared["m1"].difference.value


def test_only_common_seeds_are_compared():
    scores = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {2: 0.8, 0: 0.7}, "c": {9: 0.1}, "d": {1: 0.9}}
    compared = compare_to_baseline(scores, "a")
    assert set(compared) == {"b", "d"}
    assert compared["b"].num_seeds == 2
    assert compared["b"].difference.value == pytest.approx(0.15)
    assert compared["d"].verdict == "too few seeds"
    assert compared["d"].seeds_needed is None
    # The differences of b are 0.2 and 0.1.
    assert compared["b"].seeds_needed == seeds_needed(0.1 / 2**0.5)
    same = compare_to_baseline({"a": scores["a"], "e": dict(scores["a"])}, "a")["e"]
    assert (same.verdict, same.p_value, same.seeds_needed) == ("no difference found", 1.0, None)
    with pytest.raises(ValueError, match="baseline is 'e', but the methods are a, b, c, d"):
        compare_to_baseline(scores, "e")


DRAWS, SEEDS, METHODS, STD = 1000, 5, 8, 0.004


def drawn(effect, draw):
    """Adjusted p-values of one study whose first method is better by `effect`, the others by nothing.

    Scores of a seed share its luck (0.02), which pairing takes away; STD is that of a paired difference.
    """
    generator = np.random.default_rng([8, draw])
    noise = generator.normal(0.0, STD / math.sqrt(2.0), (METHODS, SEEDS))
    scores = 0.7 + generator.normal(0.0, 0.02, SEEDS) + noise
    scores[1] += effect
    return holm([paired_p_value(scores[i] - scores[0]) for i in range(1, METHODS)])


def test_false_positives_stay_below_the_level():
    """In at most 5% of the studies without any difference is one found in the table of 7.

    The true rate is 4.6%; of 1,000 draws a quarter of all seeds would show more than 5%, so there are 10,000.
    """
    found = sum(drawn(0.0, draw).min() < 0.05 for draw in range(10 * DRAWS))
    assert found / (10 * DRAWS) <= 0.05


def test_a_planted_difference_is_found_at_the_promised_rate():
    """The rate of the uncorrected test is `paired_power`; Holm's first step is the test at 0.05 / 7."""
    effect = 0.006
    found = 0
    for draw in range(DRAWS):
        found += drawn(effect, draw)[0] < 0.05
    least = paired_power(SEEDS, STD, effect, confidence=1.0 - 0.05 / (METHODS - 1))
    most = paired_power(SEEDS, STD, effect)
    error = 3.0 * math.sqrt(0.25 / DRAWS)
    assert least - error <= found / DRAWS <= most + error


def test_the_power_line_keeps_its_promise():
    """With the number of seeds that it names, a difference of 0.1 points is found in 80% of 1,000 studies."""
    number = seeds_needed(0.002)
    generator = np.random.default_rng(9)
    found = sum(paired_p_value(generator.normal(0.001, 0.002, number)) < 0.05 for _ in range(DRAWS))
    promised = paired_power(number, 0.002, 0.001)
    assert found / DRAWS == pytest.approx(promised, abs=3.0 * math.sqrt(0.16 / DRAWS))
