"""The figures of a report: outcomes, and what was measured in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hf_lpwd.study.plotting import INK, Figure, new_canvas, panels, percent, saved, style
from hf_lpwd.study.record import test_score
from hf_lpwd.study.results import MethodResult, decay_curve, has_test
from hf_lpwd.study.stats import Array, mean_interval, performance_profile


def draw_figures(results: Sequence[MethodResult], baseline: str) -> list[Figure | None]:
    """Draws what the records of a task allow; None in the place of a figure that would be empty."""
    return [
        _decay_curves(results, baseline),
        _heat_maps(results),
        _layers(results),
        _opposing(results),
        _training(results),
    ]


def draw_profile(scores: Mapping[str, Sequence[Array]]) -> Figure | None:
    """Draws for each method the fraction of runs above each accuracy; None for one task."""
    if not scores:
        return None
    reached = np.unique(np.concatenate([sample for samples in scores.values() for sample in samples]))
    # Below the lowest score all runs are above.
    thresholds = np.array([max(0.0, reached[0] - 0.01), *reached])
    with new_canvas(5.2, 3.6) as canvas:
        axes = canvas.subplots()
        texts = []
        for number, (name, samples) in enumerate(scores.items()):
            fractions, low, high = performance_profile(list(samples), thresholds)
            look = style(number) | {"marker": ""}
            axes.step(100.0 * thresholds, fractions, where="post", label=name, **look)
            axes.fill_between(
                100.0 * thresholds, low, high, step="post", color=look["color"], alpha=0.15, linewidth=0
            )
            texts.append(f"{name} {100.0 * thresholds[fractions <= 0.5][0]:.1f}")
        axes.set(xlabel="test accuracy, %", ylabel="fraction of runs above", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        canvas.legend(loc="outside upper center", ncols=3, fontsize=8)
        alt = f"Fraction of runs above each test accuracy. At most half are above: {'; '.join(texts)}."
        title = "Performance profile over tasks, with pointwise 95% bootstrap bands stratified by task"
        return saved(canvas, "profile", title, alt)


def _decay_curves(results: Sequence[MethodResult], baseline: str) -> Figure | None:
    """A panel a method, with the baseline in each: bands of several methods would hide each other."""
    curves = {result.name: _test_by_decay(result) for result in results}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    decays = sorted(set().union(*(curve.index for curve in curves.values())))
    if len(decays) < 2:
        return None
    with new_canvas(5.2, 0.6 + 1.9 * math.ceil(len(curves) / 2)) as canvas:
        parts = panels(canvas, curves, sharex=True, sharey=True)
        texts = []
        for number, (panel, (name, curve)) in enumerate(zip(parts, curves.items(), strict=True)):
            if baseline in curves:
                panel.plot(curves[baseline]["value"], color="grey", linestyle=":")
            look = style(number)
            panel.plot(curve["value"], **look)
            panel.fill_between(curve.index, curve["low"], curve["high"], color=look["color"], alpha=0.2, lw=0)
            panel.set_title(name, fontsize=9)
            panel.set_xscale("log")
            panel.minorticks_off()
            panel.set_xticks(decays, [f"{decay:g}" for decay in decays])
            panel.grid(alpha=0.3)
            texts.append(f"{name}: " + ", ".join(f"{v:.1f} at {r:g}" for r, v in curve["value"].items()))
        canvas.supxlabel(f"decay rate (dotted: {baseline})", fontsize=9)
        split = "test" if has_test(results) else "validation"
        canvas.supylabel(f"{split} accuracy, %", fontsize=9)
        alt = f"{split.capitalize()} accuracy in percent against the decay rate. {'; '.join(texts)}."
        return saved(canvas, "decay", "Accuracy against the decay rate, with 95% bands over seeds", alt)


def _test_by_decay(result: MethodResult) -> pd.DataFrame:
    """Test accuracy in percent with its bounds, by decay rate."""
    found = {
        rate: percent(mean_interval([test_score(run) for run in runs.values()]).clipped())
        for rate, runs in decay_curve(result.method, result.setting.learning_rate).items()
    }
    return pd.DataFrame.from_dict(found, orient="index", columns=["value", "low", "high"])


def _heat_maps(results: Sequence[MethodResult]) -> Figure | None:
    cells = [setting for result in results for setting in result.method.usable if None not in setting]
    rates = sorted({cell.learning_rate for cell in cells if cell.learning_rate is not None})
    decays = sorted({cell.decay for cell in cells if cell.decay is not None})
    if len(rates) < 2 or len(decays) < 2:
        return None
    maps = {result.name: _map(result, rates, decays) for result in results}
    known = np.concatenate([values[~np.isnan(values)] for values in maps.values()])
    low, high = known.min(), known.max()
    with new_canvas(5.2, 0.9 + (0.7 + 0.45 * len(rates)) * math.ceil(len(maps) / 2)) as canvas:
        texts = []
        for panel, (name, values) in zip(panels(canvas, maps), maps.items(), strict=True):
            panel.imshow(values, vmin=low, vmax=high, cmap="viridis", aspect="auto")
            panel.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
            panel.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            panel.set_title(name, fontsize=9)
            for row, column in np.argwhere(~np.isnan(values)):
                value = values[row, column]
                color = INK if value > (low + high) / 2 else "white"
                panel.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
            if np.isnan(values).all():
                texts.append(f"{name}: no value at these rates")
            else:
                texts.append(f"{name}: highest {np.nanmax(values):.1f}, lowest {np.nanmin(values):.1f}")
        canvas.supxlabel("decay rate", fontsize=9)
        canvas.supylabel("learning rate", fontsize=9)
        alt = f"Validation accuracy in percent at each learning rate and decay rate. {'; '.join(texts)}."
        return saved(canvas, "grid", "Learning rate by decay rate, as measured on validation", alt)


def _map(result: MethodResult, rates: Sequence[float], decays: Sequence[float]) -> np.ndarray:
    means = {
        (setting.learning_rate, setting.decay): np.mean([run.score("validation") for run in runs.values()])
        for setting, runs in result.method.usable.items()
    }
    return pd.Series(means).mul(100.0).unstack().reindex(index=rates, columns=decays).to_numpy()


def _layers(results: Sequence[MethodResult]) -> Figure | None:
    """Decay rates and final weight norms by layer."""
    rates_of = {r.name: next((run.layers for run in r.runs.values() if run.layers), []) for r in results}
    if not any(rates_of.values()):
        return None
    with new_canvas(5.2, 5.6) as canvas:
        rates, norms = canvas.subplots(2, 1, sharex=True)
        texts = []
        for number, result in enumerate(results):
            values = [layer.rate for layer in rates_of[result.name]]
            if not values:
                continue
            rates.plot(range(len(values)), values, label=result.name, **style(number))
            texts.append(f"{result.name} {values[0]:.3g} to {values[-1]:.3g}")
            measured = [run.weight_norms.norms for run in result.runs.values()]
            ends = [{layer: norms[-1] for layer, norms in one.items() if norms} for one in measured]
            final = pd.DataFrame(ends, dtype=float).mean()
            norms.plot(range(len(final)), final, **style(number))
        for axes, label in ((rates, "decay rate"), (norms, "final weight norm")):
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        norms.set_xlabel("layer, from the stem to the head")
        canvas.legend(loc="outside upper center", ncols=3, fontsize=8)
        alt = f"Decay rate and final weight norm by layer. Rates from stem to head: {'; '.join(texts)}."
        return saved(canvas, "layers", "Decay rates and weight norms by layer", alt)


def _opposing(results: Sequence[MethodResult]) -> Figure | None:
    """R_op over training; None where it was not measured."""
    measured = {
        result.name: [run.opposing_penalty for run in result.runs.values() if run.opposing_penalty.steps]
        for result in results
    }
    measured = {name: found for name, found in measured.items() if found}
    if not measured:
        return None
    with new_canvas(5.2, 2.6 * len(measured)) as canvas:
        texts = []
        rows = canvas.subplots(len(measured), 1, squeeze=False, sharex=True)
        for panel, (name, series) in zip(rows.flat, measured.items(), strict=True):
            rates = _mean_by_index(pd.DataFrame(one.rates, index=one.steps, dtype=float) for one in series)
            for number, (layer, values) in enumerate(rates.items()):
                thick = {"color": "black", "linewidth": 2.5}
                look = thick if layer == "all" else {**style(number), "marker": ""}
                panel.plot(values, label=str(layer).replace("_", " "), **look)
            panel.set_title(name, fontsize=9)
            panel.set(xlabel="step", ylabel="R_op")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7, ncols=2)
            if "all" in rates:
                texts.append(f"{name}: mean {np.mean(rates['all']):.4f}, at most {np.max(rates['all']):.4f}")
        alt = f"Opposing-penalty rate over training, by layer. {'; '.join(texts)}."
        return saved(canvas, "opposing", "Opposing penalty: decay that enlarges weights", alt)


def _training(results: Sequence[MethodResult]) -> Figure | None:
    """Training loss and validation accuracy by epoch."""
    with new_canvas(5.2, 5.6) as canvas:
        loss, accuracy = canvas.subplots(2, 1, sharex=True)
        texts = []
        for number, result in enumerate(results):
            runs = list(result.runs.values())
            losses = [pd.Series({e.epoch: e.loss for e in run.training}, dtype=float) for run in runs]
            scores = [pd.Series({e.epoch: 100.0 * e.accuracy for e in run.epochs}) for run in runs]
            loss.plot(_mean_by_index(losses), label=result.name, **style(number) | {"marker": ""})
            values = _mean_by_index(scores)
            accuracy.plot(values, **style(number))
            if len(values):
                texts.append(f"{result.name} {values.iloc[-1]:.1f}")
        if not texts:
            return None
        loss.set_ylabel("training loss")
        accuracy.set(xlabel="epoch", ylabel="validation accuracy, %")
        for axes in (loss, accuracy):
            axes.grid(alpha=0.3)
        canvas.legend(loc="outside upper center", ncols=3, fontsize=8)
        alt = f"Training loss and validation accuracy by epoch. Accuracy at the end: {'; '.join(texts)}."
        return saved(canvas, "training", "Training curves, mean over seeds", alt)


def _mean_by_index(parts: Iterable[Any]) -> Any:
    """The mean of data frames or series at each step or epoch, over the runs that have it."""
    return pd.concat(list(parts)).groupby(level=0).mean()
