"""What the sizes of some pictures tell of a data set: how to augment it, and whether it fits in memory."""

from __future__ import annotations

import os

import datasets
import numpy as np

from hf_lpwd.vision.data.decoding import image_size
from hf_lpwd.vision.data.free_memory import free_memory
from hf_lpwd.vision.data.splits import DIGITS, Splits

_SMALL_SIDE = 64
_SAMPLE = 64


def default_augmentation(splits: Splits) -> str:
    """Chooses crop for scikit-learn's digits, crop_flip for small pictures, else random_resized_crop."""
    if splits.name == DIGITS:
        return "crop"
    sizes = _sample_sizes(undecoded(splits.train, splits.image_column), splits.image_column)
    return "crop_flip" if sizes and max(map(max, sizes)) <= _SMALL_SIDE else "random_resized_crop"


def undecoded(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Returns the column of pictures alone, as bytes and paths."""
    return dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _sample_sizes(files: datasets.Dataset, column: str) -> list[tuple[int, int]]:
    """Returns height and width of some pictures spread over the data set, without those that are damaged."""
    sizes = []
    for cell in files[np.unique(np.linspace(0, len(files) - 1, _SAMPLE).astype(int))][column]:
        try:
            sizes.append(image_size(cell))
        except ValueError:
            continue
    return sizes


def fits_in_memory(files: datasets.Dataset, column: str) -> bool:
    """Whether the decoded pictures take less than this process's part of half the free memory."""
    sizes = _sample_sizes(files, column)
    if not sizes:
        return True
    estimate = len(files) * 3 * float(np.mean([height * width for height, width in sizes]))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return estimate < free_memory() / 2 / processes
