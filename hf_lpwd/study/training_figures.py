"""Figures of what happened in training: layers, opposing penalty, curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_lpwd.study.plotting import Figure, new_canvas, saved, style
from hf_lpwd.study.record import Record
from hf_lpwd.study.results import MethodResult


def draw_layers(results: Sequence[MethodResult]) -> Figure | None:
    """Decay rates and final weight norms by layer."""
    layers = {r.name: found for r in results if (found := _first(r, "layers"))}
    if not layers:
        return None
    with new_canvas(5.2, 5.6) as canvas:
        rates, norms = canvas.subplots(2, 1, sharex=True)
        texts = []
        for number, result in enumerate(results):
            if result.name not in layers:
                continue
            values = [layer.rate for layer in layers[result.name]]
            rates.plot(range(len(values)), values, label=result.name, **style(number))
            texts.append(f"{result.name} {values[0]:.3g} to {values[-1]:.3g}")
            final = _final_norms(result)
            norms.plot(range(len(final)), final, **style(number))
        for axes, label in ((rates, "decay rate"), (norms, "final weight norm")):
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        norms.set_xlabel("layer, from the stem to the head")
        canvas.legend(loc="outside upper center", ncols=3, fontsize=8)
        alt = f"Decay rate and final weight norm by layer. Rates from stem to head: {'; '.join(texts)}."
        return saved(canvas, "layers", "Decay rates and weight norms by layer", alt)


def _first(result: MethodResult, name: str) -> list:
    return next((value for run in result.runs.values() if (value := getattr(run, name))), [])


def _final_norms(result: MethodResult) -> list[float]:
    by_layer: dict[str, list[float]] = {}
    for run in result.runs.values():
        for layer, values in run.weight_norms.norms.items():
            if values and values[-1] is not None:
                by_layer.setdefault(layer, []).append(values[-1])
    return [float(np.mean(values)) for values in by_layer.values()]


def draw_opposing(results: Sequence[MethodResult]) -> Figure | None:
    """R_op over training; None where it was not measured."""
    measured = {r.name: m for r in results if (m := mean_opposing(list(r.runs.values()))) is not None}
    if not measured:
        return None
    with new_canvas(5.2, 2.6 * len(measured)) as canvas:
        texts = []
        panels = canvas.subplots(len(measured), 1, squeeze=False, sharex=True)
        for panel, (name, (steps, rates)) in zip(panels.flat, measured.items(), strict=True):
            for number, (layer, values) in enumerate(rates.items()):
                thick = {"color": "black", "linewidth": 2.5}
                look = thick if layer == "all" else {**style(number), "marker": ""}
                panel.plot(steps, values, label=layer.replace("_", " "), **look)
            panel.set_title(name, fontsize=9)
            panel.set(xlabel="step", ylabel="R_op")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7, ncols=2)
            if "all" in rates:
                texts.append(f"{name}: mean {np.mean(rates['all']):.4f}, at most {np.max(rates['all']):.4f}")
        alt = f"Opposing-penalty rate over training, by layer. {'; '.join(texts)}."
        return saved(canvas, "opposing", "Opposing penalty: decay that enlarges weights", alt)


def mean_opposing(runs: Sequence[Record]) -> tuple[list[int], dict[str, np.ndarray]] | None:
    """Steps, and R_op of each layer at them as mean over runs; None where it was not measured alike."""
    found = [run.opposing_penalty for run in runs if run.opposing_penalty.steps]
    if not found or any(one.steps != found[0].steps for one in found):
        return None
    layers = dict.fromkeys(layer for one in found for layer in one.rates)
    return found[0].steps, {
        layer: np.mean(
            [np.array(one.rates[layer], dtype=np.float64) for one in found if layer in one.rates], axis=0
        )
        for layer in layers
    }


def draw_training(results: Sequence[MethodResult]) -> Figure | None:
    """Training loss and validation accuracy by epoch."""
    with new_canvas(5.2, 5.6) as canvas:
        loss, accuracy = canvas.subplots(2, 1, sharex=True)
        texts = []
        for number, result in enumerate(results):
            runs = list(result.runs.values())
            losses = [[(e.epoch, e.loss) for e in r.training if e.loss is not None] for r in runs]
            scores = [[(e.epoch, 100.0 * e.accuracy) for e in r.epochs] for r in runs]
            loss.plot(*_mean_curve(losses), label=result.name, **style(number) | {"marker": ""})
            epochs, values = _mean_curve(scores)
            accuracy.plot(epochs, values, **style(number))
            if values:
                texts.append(f"{result.name} {values[-1]:.1f}")
        if not texts:
            return None
        loss.set_ylabel("training loss")
        accuracy.set(xlabel="epoch", ylabel="validation accuracy, %")
        for axes in (loss, accuracy):
            axes.grid(alpha=0.3)
        canvas.legend(loc="outside upper center", ncols=3, fontsize=8)
        alt = f"Training loss and validation accuracy by epoch. Accuracy at the end: {'; '.join(texts)}."
        return saved(canvas, "training", "Training curves, mean over seeds", alt)


def _mean_curve(series: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    longest = [one for one in series if len(one) == max(map(len, series))]
    if not longest or not longest[0]:
        return [], []
    values = np.array([[value for _, value in one] for one in longest])
    return [epoch for epoch, _ in longest[0]], values.mean(axis=0).tolist()
