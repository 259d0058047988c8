"""Figures of what happened in training: layers, opposing penalty, curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_lpwd.study.analysis import Context, MethodResult
from hf_lpwd.study.plotting import Figure, new_canvas, saved, style


def draw_layers(context: Context) -> Figure:
    """Decay rates and final weight norms by layer."""
    with new_canvas(9.0, 4.0) as canvas:
        rates, norms = canvas.subplots(1, 2)
        texts = []
        for number, result in enumerate(context.methods):
            look = style(number)
            layers = next(iter(result.runs.values()))["layers"]
            values = [layer["rate"] for layer in layers]
            rates.plot(range(len(values)), values, label=result.name, **look)
            texts.append(f"{result.name} {values[0]:.3g} to {values[-1]:.3g}")
            final = _final_norms(result)
            norms.plot(range(len(final)), list(final.values()), **look)
        for axes, label in ((rates, "decay rate"), (norms, "weight norm at the end, mean over seeds")):
            axes.set(xlabel="layer, from the stem to the head", ylabel=label)
            axes.grid(alpha=0.3)
        canvas.legend(loc="outside upper center", ncols=4, fontsize=8)
        alt = f"Decay rate and final weight norm by layer. Rates from stem to head: {'; '.join(texts)}."
        return saved(canvas, "layers", "Decay rates and weight norms by layer", alt)


def _final_norms(result: MethodResult) -> dict[str, float]:
    by_layer: dict[str, list[float]] = {}
    for run in result.runs.values():
        for layer, values in run["weight_norms"]["norms"].items():
            by_layer.setdefault(layer, []).append(values[-1])
    return {layer: float(np.mean(values)) for layer, values in by_layer.items()}


def draw_opposing(context: Context) -> Figure | None:
    """R_op over training; None where it was not measured."""
    measured = {r.name: m for r in context.methods if (m := mean_opposing(r)) is not None}
    if not measured:
        return None
    with new_canvas(7.5, 3.0 * len(measured)) as canvas:
        texts = []
        panels = canvas.subplots(len(measured), 1, squeeze=False, sharex=True)
        for panel, (name, (steps, rates)) in zip(panels.flat, measured.items(), strict=True):
            for number, (layer, values) in enumerate(rates.items()):
                thick = (
                    {"color": "black", "linewidth": 2.5}
                    if layer == "all"
                    else {**style(number), "marker": ""}
                )
                panel.plot(steps, values, label=layer.replace("_", " "), **thick)
            panel.set_title(name, fontsize=9)
            panel.set(xlabel="step", ylabel="R_op")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7, ncols=2)
            texts.append(
                f"{name}: over all layers {np.mean(rates['all']):.4f}, at most {np.max(rates['all']):.4f}"
            )
        alt = f"Opposing-penalty rate over training, by layer. {'; '.join(texts)}."
        return saved(canvas, "opposing", "Opposing penalty: decay that enlarges weights", alt)


def mean_opposing(result: MethodResult) -> tuple[list[int], dict[str, np.ndarray]] | None:
    """Steps, and R_op of each layer at them as mean over seeds; None where it was not measured."""
    found = [run["opposing_penalty"] for run in result.runs.values() if run["opposing_penalty"]["steps"]]
    if not found or any(one["steps"] != found[0]["steps"] for one in found):
        return None
    layers = dict.fromkeys(layer for one in found for layer in one["rates"])
    return found[0]["steps"], {
        layer: np.mean([one["rates"][layer] for one in found if layer in one["rates"]], axis=0)
        for layer in layers
    }


def draw_training(context: Context) -> Figure:
    """Training loss and validation accuracy by epoch."""
    with new_canvas(9.0, 4.0) as canvas:
        loss, accuracy = canvas.subplots(1, 2)
        texts = []
        for number, result in enumerate(context.methods):
            look = style(number)
            for axes, entries, key, scale in (
                (loss, "training", "loss", 1.0),
                (accuracy, "epochs", "accuracy", 100.0),
            ):
                epochs, values = _mean_curve(result.runs, entries, key)
                marker = {} if entries == "epochs" else {"marker": ""}
                axes.plot(
                    epochs, scale * values, label=result.name if axes is loss else None, **look | marker
                )
                if entries == "epochs" and len(values):
                    texts.append(f"{result.name} {100.0 * values[-1]:.1f}")
        loss.set(xlabel="epoch", ylabel="training loss")
        accuracy.set(xlabel="epoch", ylabel="validation accuracy, %")
        for axes in (loss, accuracy):
            axes.grid(alpha=0.3)
        canvas.legend(loc="outside upper center", ncols=4, fontsize=8)
        alt = f"Training loss and validation accuracy by epoch. Accuracy at the end: {'; '.join(texts)}."
        return saved(canvas, "training", "Training curves, mean over seeds", alt)


def _mean_curve(runs: Mapping[int, dict[str, Any]], entries: str, key: str) -> tuple[list[float], np.ndarray]:
    series = [[(e["epoch"], e[key]) for e in run[entries] if e.get(key) is not None] for run in runs.values()]
    shortest = min(map(len, series))
    values = np.array([[value for _, value in one[:shortest]] for one in series])
    return [epoch for epoch, _ in series[0][:shortest]], values.mean(axis=0)
