"""Figures of outcomes: differences, accuracy against the decay rate, the grid as measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hf_lpwd.study.analysis import Context, MethodResult, decay_curve, score
from hf_lpwd.study.plotting import Figure, new_canvas, percent, saved, style
from hf_lpwd.study.stats import Estimate, mean_interval
from hf_lpwd.study.training_figures import draw_layers, draw_opposing, draw_training


def draw_figures(context: Context) -> list[Figure]:
    """Draws what the records of a context allow; a figure that would be empty is left out."""
    drawn = (
        _forest(context),
        _decay_curves(context),
        _heat_maps(context),
        draw_layers(context),
        draw_opposing(context),
        draw_training(context),
    )
    return [figure for figure in drawn if figure is not None]


def _forest(context: Context) -> Figure | None:
    compared = [result for result in context.methods if result.comparison is not None]
    if not compared:
        return None
    with new_canvas(7.5, 1.4 + 0.42 * len(compared)) as canvas:
        axes = canvas.subplots()
        texts: list[str] = []
        for row, result in enumerate(reversed(compared)):
            assert result.comparison is not None
            value, low, high = percent(result.comparison.difference)
            _, boot_low, boot_high = percent(result.comparison.bootstrap)
            if not math.isnan(low):
                axes.plot([low, high], [row, row], color="C0", linewidth=1.5, label="95% t interval")
                axes.plot(
                    [boot_low, boot_high],
                    [row, row],
                    color="C1",
                    linewidth=5,
                    alpha=0.6,
                    label="95% bootstrap",
                )
            axes.plot([value], [row], "o", color="black", markersize=4)
            texts.insert(0, f"{result.name} {value:+.2f} ({result.comparison.verdict})")
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(compared)), [result.name for result in reversed(compared)])
        axes.set_xlabel(f"test accuracy minus that of {context.baseline}, points")
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            unique = dict(zip(labels, handles, strict=True))
            canvas.legend(unique.values(), unique.keys(), loc="outside upper right", ncols=2, fontsize=8)
        alt = f"Forest plot. Points of test accuracy against {context.baseline}: {'; '.join(texts)}."
        return saved(canvas, "differences", "Paired differences", alt)


def _decay_curves(context: Context) -> Figure | None:
    """A panel a method, with the baseline in each: bands of several methods would hide each other."""
    curves = {result.name: _test_by_decay(result) for result in context.methods}
    curves = {name: curve for name, curve in curves.items() if curve}
    decays = sorted(set().union(*curves.values()))
    if len(decays) < 2:
        return None
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    with new_canvas(3.2 * columns, 0.6 + 2.4 * rows) as canvas:
        panels = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel in panels.flat[len(curves) :]:
            panel.set_axis_off()
        texts = []
        for number, (panel, (name, curve)) in enumerate(zip(panels.flat, curves.items(), strict=False)):
            if context.baseline in curves:
                _, values, _, _ = _columns(curves[context.baseline])
                panel.plot(list(curves[context.baseline]), values, color="grey", linestyle=":")
            rates, values, lows, highs = _columns(curve)
            look = style(number)
            panel.plot(rates, values, **look)
            panel.fill_between(rates, lows, highs, color=look["color"], alpha=0.2, linewidth=0)
            panel.set_title(name, fontsize=9)
            panel.set_xscale("log")
            panel.minorticks_off()
            panel.set_xticks(decays, [f"{decay:g}" for decay in decays])
            panel.grid(alpha=0.3)
            texts.append(
                f"{name}: " + ", ".join(f"{v:.1f} at {r:g}" for r, v in zip(rates, values, strict=True))
            )
        canvas.supxlabel(f"weight_decay (dotted: {context.baseline})", fontsize=9)
        canvas.supylabel("test accuracy, %", fontsize=9)
        alt = f"Test accuracy in percent against the decay rate. {'; '.join(texts)}."
        return saved(canvas, "decay", "Accuracy against the decay rate, with 95% bands over seeds", alt)


def _test_by_decay(result: MethodResult) -> dict[float, Estimate]:
    return {
        rate: mean_interval([score(run, "test") for run in runs.values()])
        for rate, runs in decay_curve(result.grid, result.setting.learning_rate).items()
    }


def _columns(curve: dict[float, Estimate]) -> tuple[list[float], list[float], list[float], list[float]]:
    values, lows, highs = zip(*map(percent, curve.values()), strict=True)
    return list(curve), list(values), list(lows), list(highs)


def _heat_maps(context: Context) -> Figure | None:
    settings = [setting for result in context.methods for setting in result.grid]
    rates = sorted({s.learning_rate for s in settings if s.learning_rate is not None})
    decays = sorted({s.weight_decay for s in settings if s.weight_decay is not None})
    if len(rates) < 2 or len(decays) < 2:
        return None
    maps = {result.name: _map(result, rates, decays) for result in context.methods}
    low, high = (
        f([f(m[~np.isnan(m)]) for m in maps.values() if not np.isnan(m).all()]) for f in (np.min, np.max)
    )
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    with new_canvas(3.4 * columns, 0.9 + (0.7 + 0.45 * len(rates)) * rows) as canvas:
        panels = canvas.subplots(rows, columns, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        texts = []
        for panel, (name, values) in zip(panels.flat, maps.items(), strict=False):
            panel.set_axis_on()
            panel.imshow(values, vmin=low, vmax=high, cmap="viridis", aspect="auto")
            panel.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
            panel.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            panel.set_title(name, fontsize=9)
            for row, column in np.argwhere(~np.isnan(values)):
                value = values[row, column]
                light = value > (low + high) / 2
                panel.text(
                    column,
                    row,
                    f"{value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if light else "white",
                )
            texts.append(f"{name}: highest {np.nanmax(values):.1f}, lowest {np.nanmin(values):.1f}")
        canvas.supxlabel("weight_decay", fontsize=9)
        canvas.supylabel("learning rate", fontsize=9)
        alt = f"Validation accuracy in percent at each learning rate and decay rate. {'; '.join(texts)}."
        return saved(canvas, "grid", "Learning rate by decay rate, as measured on validation", alt)


def _map(result: MethodResult, rates: Sequence[float], decays: Sequence[float]) -> np.ndarray:
    values = np.full((len(rates), len(decays)), np.nan)
    for setting, runs in result.grid.items():
        if setting.learning_rate in rates and setting.weight_decay in decays:
            cell = rates.index(setting.learning_rate), decays.index(setting.weight_decay)
            values[cell] = 100.0 * np.mean([score(run, "validation") for run in runs.values()])
    return values
