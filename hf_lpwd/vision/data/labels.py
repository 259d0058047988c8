"""Label column -> classes 0..C-1 with names; splits and subsets with every class in proportion."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_lpwd.messages import BadInputError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_DISCRETE = re.compile(r"(large_)?string|u?int\d+|bool")


def encode_labels(
    parts: dict[str, Dataset], sources: dict[str, str], column: str
) -> tuple[list[str], dict[str, Dataset], dict[str, np.ndarray]]:
    """Makes the label column a `datasets.ClassLabel` in every split.

    A `ClassLabel` keeps its names. Strings, integers and booleans become classes in the sorted order of the
    values found in `"train"`. A validation or test split in which no row has a label (the column, or every
    value, is missing, or every value is -1) is left out, with a warning.

    Args:
        parts: The splits by role; `"train"` must be there.
        sources: Name of each split in the data set, for errors.
        column: The label column.

    Returns:
        The class names, the splits that have labels, and their labels as int64 arrays.

    Raises:
        BadInputError: If the column holds something else, or a label is missing or is none of the classes.
    """
    import datasets

    feature = parts["train"].features[column]
    values = {role: _values(part, column) for role, part in parts.items()}
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        index: dict[Any, int] = {label: label for label in range(len(names))}
    elif isinstance(feature, datasets.Value) and _DISCRETE.fullmatch(feature.dtype):
        classes = sorted({value for value in values["train"] if value is not None})
        names = [str(value) for value in classes]
        index = {value: label for label, value in enumerate(classes)}
    else:
        raise BadInputError(
            f"label column {column!r} holds {feature}: labels must be strings, integers or classes"
        )

    encoded, labels = {}, {}
    for role, part in parts.items():
        unlabelled = all(value is None or (value == -1 and -1 not in index) for value in values[role])
        if unlabelled and role != "train":
            logger.warning("the %s split (%s) has no labels and is not used", role, sources[role])
            continue
        labels[role] = _encode(values[role], index, sources[role], len(names))
        if isinstance(feature, datasets.ClassLabel):
            encoded[role] = part
        else:
            class_label = datasets.ClassLabel(names=names)
            encoded[role] = part.remove_columns(column).add_column(column, labels[role], feature=class_label)
    return names, encoded, labels


def stratified_cut(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `size` rows off, with every class in proportion.

    A class with a single row stays whole in the rest. Where `size`, or what remains, is smaller than the
    number of classes the rows are drawn without regard to the class, with a warning.

    Args:
        labels: Label of each row.
        size: Rows to cut off, less than all.
        seed: Seed of the draw.

    Returns:
        The row numbers that remain and those cut off, both sorted.
    """
    from sklearn.model_selection import train_test_split

    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] > 1)
    if min(size, len(rows) - size) < np.count_nonzero(counts > 1):
        logger.warning("%d of %d rows for %d classes: not stratified", size, len(labels), len(counts))
        _, cut = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed)
    else:
        _, cut = train_test_split(rows, test_size=size, random_state=seed, stratify=labels[rows])
    return np.setdiff1d(np.arange(len(labels)), cut), np.sort(cut)


def _values(dataset: Dataset, column: str) -> list[Any]:
    """Returns the labels as Python values, None where there is none."""
    if column not in dataset.column_names:
        return [None] * len(dataset)
    return dataset.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()


def _encode(values: list[Any], index: dict[Any, int], source: str, num_classes: int) -> np.ndarray:
    labels = [index.get(value, -1) for value in values]
    if -1 in labels:
        row = labels.index(-1)
        value = values[row]
        fault = (
            "the label is missing"
            if value is None
            else f"label {value!r} is none of the {num_classes} classes"
        )
        raise BadInputError(f"{source} row {row}: {fault}")
    return np.array(labels, dtype=np.int64)
