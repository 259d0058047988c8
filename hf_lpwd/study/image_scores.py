"""What the test images add: their number, which were right, and the variance of a difference over them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from hf_lpwd.study.record import Record

_MANY_IMAGES = 100_000


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


def test_score(run: Record) -> float:
    """Accuracy on test; on validation if no test split was read, in which case there is no verdict."""
    score = run.score("test")
    fallback = run.score("validation") if score is None else score
    assert fallback is not None
    return fallback
