"""What one number a method gets: over the whole grid of decay rates, or as in the paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_lpwd.study.stats import Estimate, mean_interval

#: How many of a run's best test accuracies the paper averages.
PAPER_BEST = 10


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


def decay_robustness(scores: ArrayLike, decays: ArrayLike) -> Robustness:
    """Summarises scores over a grid of decay rates, with 95% t intervals over seeds.

    The area is that of the trapezoidal rule over log lambda, divided by log(lambda_max / lambda_min).

    Args:
        scores: [n seeds, k rates].
        decays: Rates [k], k >= 2, distinct and above 0, in any order.

    Raises:
        ValueError: The shapes do not fit, or a rate is 0, which has no logarithm.
    """
    values, rates = np.asarray(scores, dtype=np.float64), np.asarray(decays, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(rates) or len(rates) < 2:
        raise ValueError(
            f"scores have shape {values.shape}, but must be [seeds, decay rates] for 2 or more rates, "
            f"not {len(rates)}"
        )
    if (rates <= 0.0).any() or len(set(rates.tolist())) < len(rates):
        raise ValueError(f"decay rates must be distinct and above 0, not {rates.tolist()}")
    order = np.argsort(rates)
    values, logs = values[:, order], np.log(rates[order])
    worst, best = values.min(axis=1), values.max(axis=1)
    area = np.trapezoid(values, logs, axis=1) / (logs[-1] - logs[0])
    return Robustness(mean_interval(worst), mean_interval(best - worst), mean_interval(area))


def best_epochs_mean(test_scores: ArrayLike, best: int = PAPER_BEST) -> float:
    """The paper's metric: mean of the 10 best test accuracies among the epochs of one run.

    It selects on the test set, and so is too high; it stands in a report beside the honest figure only.

    Args:
        test_scores: Test accuracy after each epoch [epochs]; with fewer than `best` all are averaged.
        best: How many.
    """
    scores = np.sort(np.asarray(test_scores, dtype=np.float64))
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"test_scores must be a list of one or more numbers, not {test_scores!r}")
    return float(scores[-best:].mean())
