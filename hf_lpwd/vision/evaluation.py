"""What a classifier gets right, class by class: tables and figures of an evaluation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas

from hf_lpwd.messages import escaped

#: Up to so many classes, the figure says each count.
_MOST_COUNTS = 20
#: Up to so many classes, the figure names each class.
_MOST_NAMES = 100


def class_table(matrix: np.ndarray, class_names: Sequence[str]) -> pandas.DataFrame:
    """Returns what a confusion matrix tells about each class, NaN where there are no images to measure it on.

    `matrix` counts images by class (rows) and predicted class (columns), int64 [classes, classes].
    `images` are of the class, `predicted` are taken for it. `recall` is the fraction of `images` that is
    taken for it, `precision` the fraction of `predicted` that is of it, `f1` their harmonic mean.
    `confused_with` is the other class that its images are most often taken for.

    Example:
        >>> table = class_table(np.array([[3, 1], [0, 0]]), ["cat", "dog"])
        >>> table[["images", "predicted", "recall", "precision", "confused_with"]].to_numpy().tolist()[0]
        [4, 3, 0.75, 1.0, 'dog']
    """
    images, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    wrong = matrix - np.diag(right)
    with np.errstate(invalid="ignore"):
        figures = {
            "recall": right / images,
            "precision": right / predicted,
            "f1": 2 * right / (images + predicted),
        }
    confused = [class_names[row.argmax()] if row.any() else "" for row in wrong]
    counts = {"class": list(class_names), "images": images, "predicted": predicted}
    return pandas.DataFrame({**counts, **figures, "confused_with": confused})


def classes_csv(table: pandas.DataFrame) -> str:
    """Returns the classes as CSV; a figure that could not be measured is empty."""
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def classes_text(table: pandas.DataFrame) -> str:
    """Returns the classes as a table for a terminal."""
    shown = table.drop(columns="predicted").rename(columns={"confused_with": "most often taken for"})
    for name in ("class", "most often taken for"):  # to the left, as to_string has only headers
        shown[name] = shown[name].map(escaped)
        width = max(len(name), shown[name].str.len().max())
        shown[name] = shown[name].str.ljust(width)
        shown = shown.rename(columns={name: name.ljust(width)})
    formatters = {"images": "{:,}".format}
    text = shown.to_string(index=False, na_rep="-", float_format="{:.4f}".format, formatters=formatters)
    return "\n".join(line.rstrip() for line in text.splitlines())


def confusion_csv(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns the confusion matrix as CSV: a row a class, a column a prediction."""
    index = pandas.Index(class_names, name="class")
    return pandas.DataFrame(matrix, index=index, columns=list(class_names)).to_csv(lineterminator="\n")


def confusion_svg(matrix: np.ndarray, class_names: Sequence[str], title: str) -> bytes:
    """Draws the confusion matrix; colours are fractions of each class's images, numbers are counts."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    size = len(class_names)
    side = min(3.0 + 0.35 * size, 24.0)
    images = matrix.sum(axis=1, keepdims=True)
    fractions = matrix / np.maximum(images, 1)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, label="fraction of the class's images", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="class")
    axes.set_title(escaped(title), parse_math=False)
    if size <= _MOST_NAMES:
        small: dict[str, Any] = {"fontsize": 8 if size <= _MOST_COUNTS else 5, "parse_math": False}
        labels = [escaped(name) for name in class_names]
        axes.set_xticks(range(size), labels, rotation=90, **small)
        axes.set_yticks(range(size), labels, **small)
    if size <= _MOST_COUNTS:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            count = f"{matrix[row, column]}"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize="x-small")
    buffer = io.BytesIO()
    # Names stay text, in whatever font the reader has: matplotlib's own lacks many scripts.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf-lpwd"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
