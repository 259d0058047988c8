"""The loss and accuracy curves of a run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

_SERIES = (("loss", "training"), ("eval_loss", "validation"), ("eval_accuracy", "validation"))


def draw_curves(log_history: Iterable[Mapping[str, Any]], title: str) -> bytes:
    """Draws training and validation loss, and validation accuracy, against the epoch; returns a PNG file.

    `log_history` is that of `TrainerState`.
    """
    from matplotlib.figure import Figure

    # What follows the training's own summary was measured with the best checkpoint, not with the last.
    entries = list(takewhile(lambda entry: "train_runtime" not in entry, log_history))
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for key, label in _SERIES:
        points = [(entry["epoch"], entry[key]) for entry in entries if key in entry]
        if points:
            axes = accuracy if key == "eval_accuracy" else loss
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 60 else "")
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
