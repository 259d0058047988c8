"""What a classifier gets right, class by class: tables and figures of an evaluation."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Up to so many classes, the figure says each count.
_MOST_COUNTS = 20
#: Up to so many classes, the figure names each class.
_MOST_NAMES = 100


@dataclass(frozen=True)
class ClassRow:
    """One class of an evaluation; a figure is NaN where it has no images to be measured on.

    Attributes:
        name: The class.
        images: Images of this class.
        predicted: Images that the model takes for this class.
        recall: Fraction of `images` that the model takes for this class.
        precision: Fraction of `predicted` that are of this class.
        f1: Harmonic mean of the two.
        confused_with: The other class that its images are most often taken for, if any.
    """

    name: str
    images: int
    predicted: int
    recall: float
    precision: float
    f1: float
    confused_with: str


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts images by class (rows) and predicted class (columns); int64 [num_classes, num_classes]."""
    from sklearn import metrics

    return metrics.confusion_matrix(labels, predictions, labels=np.arange(num_classes))


def class_rows(matrix: np.ndarray, class_names: Sequence[str]) -> list[ClassRow]:
    """Returns what a confusion matrix tells about each class.

    Example:
        >>> [row] = class_rows(np.array([[3, 1], [0, 0]]), ["cat", "dog"])[:1]
        >>> (row.images, row.predicted, row.recall, row.precision, row.confused_with)
        (4, 3, 0.75, 1.0, 'dog')
    """
    images, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    wrong = matrix - np.diag(right)
    with np.errstate(invalid="ignore"):
        recall, precision, f1 = right / images, right / predicted, 2 * right / (images + predicted)
    return [
        ClassRow(
            name=name,
            images=int(images[i]),
            predicted=int(predicted[i]),
            recall=float(recall[i]),
            precision=float(precision[i]),
            f1=float(f1[i]),
            confused_with=class_names[wrong[i].argmax()] if wrong[i].any() else "",
        )
        for i, name in enumerate(class_names)
    ]


def classes_csv(rows: Sequence[ClassRow]) -> str:
    """Returns the classes as CSV; a figure that could not be measured is empty."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", "images", "predicted", "recall", "precision", "f1", "confused_with"])
    for row in rows:
        figures = ["" if np.isnan(value) else f"{value:.6f}" for value in (row.recall, row.precision, row.f1)]
        writer.writerow([row.name, row.images, row.predicted, *figures, row.confused_with])
    return table.getvalue()


def classes_text(rows: Sequence[ClassRow]) -> str:
    """Returns the classes as a table for a terminal."""
    header = ("class", "images", "recall", "precision", "f1", "most often taken for")
    cells = [
        (
            row.name,
            f"{row.images:,}",
            *("-" if np.isnan(value) else f"{value:.4f}" for value in (row.recall, row.precision, row.f1)),
            row.confused_with,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if column in (0, 5) else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *cells)
    )


def confusion_csv(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns the confusion matrix as CSV: a row a class, a column a prediction."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", *class_names])
    writer.writerows([name, *counts.tolist()] for name, counts in zip(class_names, matrix, strict=True))
    return table.getvalue()


def confusion_svg(matrix: np.ndarray, class_names: Sequence[str], title: str) -> bytes:
    """Draws the confusion matrix; colours are fractions of each class's images, numbers are counts."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    size = len(class_names)
    side = min(3.0 + 0.35 * size, 24.0)
    images = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(images, 1)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, label="fraction of the class's images", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="class")
    axes.set_title(title, parse_math=False)
    if size <= _MOST_NAMES:
        small: dict[str, Any] = {"fontsize": 8 if size <= _MOST_COUNTS else 5, "parse_math": False}
        axes.set_xticks(range(size), class_names, rotation=90, **small)
        axes.set_yticks(range(size), class_names, **small)
    if size <= _MOST_COUNTS:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            count = f"{matrix[row, column]}"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize="x-small")
    buffer = io.BytesIO()
    # Names stay text, in whatever font the reader has: matplotlib's own lacks many scripts.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf-lpwd"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
