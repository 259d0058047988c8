"""Label column -> classes 0..C-1 with names; splits and subsets with every class in proportion."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.vision.data.facts import list_names

logger = logging.getLogger(__name__)

_NO_LABEL = re.compile(r"\s*(-1(\.0+)?\s*)?")
_WHOLE = re.compile(r"(0|-?[1-9]\d*)(\.0+)?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
# How pandas, R, SQL and Python write a number that is missing.
_NO_NUMBER = {"nan", "NaN", "NAN", "<NA>", "NA", "N/A", "null", "NULL", "None"}


def encode_labels(
    parts: dict[str, Dataset],
    sources: dict[str, str],
    column: str,
    *,
    skip_unlabelled: bool = False,
) -> tuple[list[str], dict[str, Dataset], dict[str, np.ndarray]]:
    """Makes the label column a `datasets.ClassLabel` in every split.

    A `ClassLabel` keeps its names. Text, integers, booleans and whole floats become classes in the sorted
    order of the values in `"train"`: by number if all are whole numbers without leading zeros, else by text.
    None, NaN, an empty text and -1 mean: no label; so do ``nan``, ``NA`` and the like where all other labels
    are numbers. A validation or test split without any label is left out, with a warning.

    Args:
        parts: The splits by role; `"train"` must be there.
        sources: Name of each split in the dataset, for errors.
        column: The label column.
        skip_unlabelled: Whether rows without a label are allowed.

    Returns:
        Class names, the splits that have labels, and the labels of all splits as int64 arrays, -1 for none.

    Raises:
        BadInputError: If the column holds something else, or a label is missing or is none of the classes.
    """
    names_of = labels_by_name(parts, sources, column)
    feature = parts["train"].features[column]
    if isinstance(feature, datasets.ClassLabel):
        classes = list(feature.names)
    else:
        found = {name for name in names_of["train"] if name is not None}
        classes = sorted(found, key=int if all(map(_WHOLE.fullmatch, found)) else str)
    index = {name: label for label, name in enumerate(classes)}
    encoded, labels = {}, {}
    for role, part in parts.items():
        if role != "train" and all(name is None for name in names_of[role]):
            logger.warning("the %s split (%s) has no labels and is not used", role, sources[role])
            labels[role] = np.full(len(part), -1)
            continue
        _check(names_of[role], classes, sources[role], skip_unlabelled)
        labels[role] = np.array([-1 if name is None else index[name] for name in names_of[role]], np.int64)
        class_label = datasets.ClassLabel(names=classes)
        encoded[role] = part
        if part.features.get(column) != class_label:
            kept = part.remove_columns(column) if column in part.column_names else part
            encoded[role] = kept.add_column(column, labels[role], feature=class_label)
    return classes, encoded, labels


def is_missing(value: Any) -> bool:
    """Whether a label is none: None, NaN, an empty text or -1.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), "", " -1.0", -1, "None", 0)]
        [True, True, True, True, True, False, False]
    """
    return value is None or value != value or _NO_LABEL.fullmatch(str(value)) is not None


def without_missing(labels: Sequence[Any]) -> list[Any]:
    """Returns the labels of a column with None for those that are missing, see `encode_labels`."""
    missing = missing_numbers(str(label) for label in labels if not is_missing(label))
    return [None if is_missing(label) or str(label) in missing else label for label in labels]


def missing_numbers(labels: Iterable[str]) -> set[str]:
    """Returns which labels stand for a missing number, where all others are numbers, and warns of them.

    Example:
        >>> missing_numbers(["0", "1", "nan"]), missing_numbers(["NA", "US"])
        ({'nan'}, set())
    """
    labels = set(labels)
    found = {label for label in labels if label.strip() in _NO_NUMBER}
    if not found or found == labels or not all(_NUMBER.fullmatch(label.strip()) for label in labels - found):
        return set()
    logger.warning("Labels %s beside numbers mean: no label", list_names(map(repr, sorted(found))))
    return found


def rename_hint(strange: Iterable[str], known: Iterable[str]) -> str:
    """Returns what to add to an error about unknown classes: which of them are known in another case.

    Example:
        >>> rename_hint(["CAT", "fox"], ["cat", "dog"]), rename_hint(["fox"], ["cat", "dog"])
        ("; only the case differs: rename 'CAT' to 'cat'", '')
    """
    by_text = {name.casefold(): name for name in known}
    alike = [f"{name!r} to {by_text[name.casefold()]!r}" for name in strange if name.casefold() in by_text]
    return f"; only the case differs: rename {list_names(alike)}" if alike else ""


def stratified_cut(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `size` rows off, with every class in proportion, and leaves at least one row of every class.

    If `size`, or what remains, is smaller than the number of classes, the rows are chosen without regard to
    the class, with a warning. If the classes cannot spare `size` rows, fewer are cut off, with a warning.

    Returns:
        The row numbers that remain and those cut off, both sorted.

    Raises:
        BadInputError: If there is only one row of each class.
    """
    spare = len(labels) - len(np.unique(labels))
    if spare == 0:
        raise BadInputError(
            f"{len(labels)} training images of {len(labels)} classes: none can be cut off for validation "
            "or test; give more images, or a dataset that has these splits"
        )
    if size > spare:
        logger.warning(
            "%d of %d rows are cut off instead of %d: every class keeps one", spare, len(labels), size
        )
        size = spare
    rest, cut = _draw(labels, size, seed)
    return _with_every_class(labels, rest, cut)


def stratified_subset(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns `size` row numbers, sorted, with every class in proportion and, if `size` allows, in it."""
    rest, subset = _draw(labels, size, seed)
    return _with_every_class(labels, subset, rest)[0]


def _draw(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] > 1)
    if min(size, len(rows) - size) < np.count_nonzero(counts > 1):
        logger.warning("%d of %d rows for %d classes: not stratified", size, len(labels), len(counts))
        _, cut = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed)
    else:
        _, cut = train_test_split(rows, test_size=size, random_state=seed, stratify=labels[rows])
    return np.setdiff1d(np.arange(len(labels)), cut), np.sort(cut)


def _with_every_class(
    labels: np.ndarray, kept: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Swaps a row of each class that only `other` has for one of the class that `kept` has most of."""
    kept, other = kept.copy(), other.copy()
    for label in np.setdiff1d(labels[other], labels[kept]):
        classes, counts = np.unique(labels[kept], return_counts=True)
        if counts.max() == 1:
            break
        given = np.flatnonzero(labels[kept] == classes[counts.argmax()])[-1]
        taken = np.flatnonzero(labels[other] == label)[0]
        kept[given], other[taken] = other[taken], kept[given]
    return np.sort(kept), np.sort(other)


def labels_by_name(
    parts: dict[str, Dataset], sources: dict[str, str], column: str
) -> dict[str, list[str | None]]:
    """Returns the labels of each split as text, None where there is none, see `encode_labels`.

    Raises:
        BadInputError: If a label is neither text nor a whole number nor a class.
    """
    names: dict[str, list[str | None]] = {}
    for role, part in parts.items():
        values: list[Any] = [None] * len(part)
        if column in part.column_names:
            values = part.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
        classes = getattr(part.features.get(column), "names", None)
        places = (f"{sources[role]} row {row}" for row in range(len(part)))
        names[role] = [
            _name(value, classes, column, place) for value, place in zip(values, places, strict=True)
        ]
    plain = {role for role, part in parts.items() if not hasattr(part.features.get(column), "names")}
    missing = missing_numbers(name for role in plain for name in names[role] if name is not None)
    if missing:
        for role in plain:
            names[role] = [None if name in missing else name for name in names[role]]
    texts = [name for role in names for name in names[role] if name is not None]
    if all(_WHOLE.fullmatch(text) for text in texts):  # 1 and 1.0 are the same class
        names = {role: [name and name.partition(".")[0] for name in names[role]] for role in names}
    return names


def _name(value: Any, classes: list[str] | None, column: str, place: str) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if classes is not None:
        if not 0 <= value < len(classes):
            raise BadInputError(f"{place}: label {value} is none of the {len(classes)} classes")
        return classes[value]
    if isinstance(value, str | int):
        return str(value)
    raise BadInputError(
        f"label column {column!r} holds {list_names([repr(value)])} ({place}): labels must be text, whole "
        "numbers or classes"
    )


def _check(names: list[str | None], classes: list[str], source: str, skip_unlabelled: bool) -> None:
    """Raises if a label is missing or is none of the classes."""
    missing = [row for row, name in enumerate(names) if name is None]
    if missing and not skip_unlabelled:
        raise BadInputError(
            f"{source}: {len(missing)} of {len(names)} labels are missing (empty or -1), the first in row "
            f"{missing[0]}: --skip_unlabelled leaves these rows out"
        )
    known = set(classes)
    strange = [row for row, name in enumerate(names) if name is not None and name not in known]
    if strange:
        fault = unknown("label", names[strange[0]], classes)
        hint = rename_hint(sorted({str(names[row]) for row in strange}), classes)
        raise BadInputError(
            f"{source}: {len(strange)} of {len(names)} labels are none of the {len(classes)} classes "
            f"({list_names(classes)}), the first in row {strange[0]}: {fault}{hint}"
        )
