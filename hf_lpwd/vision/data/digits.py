"""The dataset that needs no download: scikit-learn's handwritten digits."""

from __future__ import annotations

import datasets
import numpy as np
from datasets import DatasetDict

from hf_lpwd.vision.data.labels import stratified_cut

#: Name of the dataset in messages and records.
DIGITS = "digits"
# Constants, so that every run has the same test images.
_TEST_SEED, _TEST_FRACTION = 0, 0.2


def load_digits() -> DatasetDict:
    """Returns scikit-learn's 1,797 handwritten digits, 8x8 grey, with a test split that never changes.

    The values 0..16 become 0..255. A fifth, stratified by label with a fixed seed, is the test split.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = stratified_cut(digits.target, round(_TEST_FRACTION * len(images)), _TEST_SEED)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": list(images[rows]), "label": digits.target[rows]}, features=features
            )
            for split, rows in (("train", train), ("test", test))
        }
    )
