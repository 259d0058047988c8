"""Draws the README's figure: when each timing decays, and how each schedule distributes the rate."""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hf_lpwd.schedules import SCHEDULES, layer_rates

GRADIENT, UPDATE, DECAY = "gradient", "update", "decay"
STEPS = {
    "l2": (GRADIENT, f"+ {DECAY}", UPDATE),
    "wd": (GRADIENT, DECAY, UPDATE),
    "rwd": (GRADIENT, UPDATE, DECAY),
    "pwd": (DECAY, GRADIENT, UPDATE),
}
COLORS = {GRADIENT: "#4c78a8", UPDATE: "#72b7b2", DECAY: "#e45756"}


def main() -> None:
    """Writes the figure to the path on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="an .svg or .png file")
    figure = Figure(figsize=(10.0, 3.4), layout="constrained")
    figure.patch.set_facecolor("white")
    steps, rates = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, (timing, boxes) in enumerate(STEPS.items()):
        steps.text(-0.15, -row, timing, ha="right", va="center", family="monospace", weight="bold")
        for column, text in enumerate(boxes):
            color = COLORS[next(kind for kind in (DECAY, GRADIENT, UPDATE) if kind in text)]
            box = FancyBboxPatch(
                (column * 1.05, -row - 0.28), 0.85, 0.56, boxstyle="round,pad=0.03", color=color
            )
            steps.add_patch(box)
            steps.text(column * 1.05 + 0.425, -row, text, ha="center", va="center", color="white", size=9)
    steps.set(xlim=(-0.6, 3.1), ylim=(-3.4, 0.4), title="timing: what a step does, in order")
    steps.axis("off")
    for schedule in SCHEDULES:
        rates.plot(range(14), layer_rates(1.0, 13, schedule), marker=".", label=schedule)
    rates.set(xlabel="layer: 0 stem, 1-12 blocks, 13 head", ylabel="rate / weight_decay", title="schedule")
    rates.legend(fontsize=8)
    rates.grid(alpha=0.3)
    figure.savefig(parser.parse_args().output, metadata={"Date": None})


if __name__ == "__main__":
    main()
