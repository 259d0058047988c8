"""The forest plot of a report: differences with their intervals and the margin."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from hf_lpwd.messages import value_range
from hf_lpwd.study.comparison import Comparison
from hf_lpwd.study.plotting import Figure, new_canvas, panels, percent, saved

_BAND: dict[str, Any] = {"color": "C0", "alpha": 0.12, "linewidth": 0}


def draw_forest(comparisons: Sequence[Comparison], name: str, title: str, with_task: bool) -> Figure | None:
    """Draws differences with their intervals over seeds, thin over test images too, and the margin's band.

    With tasks, what is compared has a panel, and a task a row; else a comparison has a row.
    """
    shown = [c for c in comparisons if c.paired is not None and c.split == "test"]
    if not shown:
        return None
    heads = _heads(shown)
    labels = list(dict.fromkeys(c.task for c in shown)) if with_task else heads
    rows: dict[str, list[tuple[int, Comparison]]] = {}
    for number, (head, c) in enumerate(zip(heads, shown, strict=True)):
        if with_task:
            rows.setdefault(head, []).append((labels.index(c.task), c))
        else:
            rows.setdefault("", []).append((number, c))
    labels = list(map(_filled, labels))
    height = 0.1 + 0.16 * sum(label.count("\n") + 1.5 for label in labels)
    height += 0.2 + 0.16 * max(_filled(head).count("\n") for head in rows)
    with new_canvas(5.2, 0.6 + height * math.ceil(len(rows) / 2)) as canvas:
        for panel, (head, shown_here) in zip(panels(canvas, rows, sharey=True), rows.items(), strict=True):
            panel.set_title(_filled(head), fontsize=8)
            # Else an interval that ends where the band does touches the frame.
            panel.use_sticky_edges = False
            margins = {c.question.margin for _, c in shown_here}
            if len(margins) == 1:
                panel.axvspan(-max(margins), max(margins), **_BAND)
            for row, c in shown_here:
                if len(margins) > 1:
                    panel.barh(row, 2.0 * c.question.margin, height=1.0, left=-c.question.margin, **_BAND)
                _draw(panel, row, c)
            panel.axvline(0.0, color="black", linewidth=0.8)
            panel.tick_params("x", labelsize=8)
            panel.set_yticks(range(len(labels)), labels, fontsize=8)
            panel.set_ylim(len(labels) - 0.5, -0.5)
            panel.spines[["top", "right", "left"]].set_visible(False)
        margin = value_range({c.question.margin for c in shown})
        others = {c.to for c in shown}
        to = f" to {next(iter(others))}" if len(others) == 1 else ""
        canvas.supxlabel(f"difference{to}, points of test accuracy\n(band: margin of {margin})", fontsize=9)
        texts = [
            f"{c.name} against {c.to}{f' on {c.task}' if with_task else ''} "
            f"{percent(c.difference)[0]:+.2f} ({c.verdict})"
            for c in shown
        ]
        return saved(canvas, name, title, f"Forest plot, points of test accuracy. {'; '.join(texts)}.")


def _heads(shown: Sequence[Comparison]) -> list[str]:
    """What each comparison compares, with what tells it from the others."""
    several = {
        "question": len({c.question.name for c in shown}) > 1,
        "to": len({c.to for c in shown}) > 1,
        "measure": len({c.question.measure for c in shown}) > 1,
    }
    heads = []
    for c in shown:
        question = f"{c.question.name}: " if several["question"] and c.question.name else ""
        measure = f", {c.question.measure}" if several["measure"] and c.question.measure == "range" else ""
        heads.append(question + c.name + (f"\nagainst {c.to}" if several["to"] else "") + measure)
    return heads


def _filled(text: str) -> str:
    """In lines of a width at which two panels are legible beside each other on a telephone."""
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, 28))


def _draw(panel: Any, row: int, c: Comparison) -> None:
    value, low, high = percent(c.difference)
    wide = c.over_images
    if wide is not None and not math.isnan(wide.low):
        panel.plot(percent(wide)[1:], [row, row], color="black", linewidth=0.8)
    if not math.isnan(low):
        panel.plot([low, high], [row, row], color="C0", linewidth=3.0)
    panel.plot([value], [row], "o", color="black", markersize=5)
