"""What a run shows: a paragraph at its start, one line an epoch, how it went, and its curves."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState

from hf_lpwd.messages import say

#: Steps after which the time that a run takes is estimated.
FIRST_STEPS = 10
_SERIES = (("loss", "training"), ("eval_loss", "validation"), ("eval_accuracy", "validation"))


class ProgressBar(ProgressCallback):
    """The Trainer's progress bar, without the dictionaries that it prints."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Prints nothing."""


class EpochLines(TrainerCallback):
    """Prints one line for each evaluation, or for each epoch without one.

    ``epoch 3/6  loss 1.02  validation 0.593  best 0.593 (epoch 3)  left 0:12``: the mean training loss since
    the line before, the validation metric that selects the checkpoint, its best value so far, and the time
    that is left as minutes and seconds.

    Args:
        opening: Printed before the first step.
    """

    def __init__(self, opening: str) -> None:
        self.opening = opening
        self._losses: list[float] = []
        self._started = 0.0
        self._first_step = 0

    def print_instead_of(self, trainer: Trainer) -> None:
        """Takes the place of what a Trainer prints."""
        handler = trainer.callback_handler
        bar = any(isinstance(callback, ProgressCallback) for callback in handler.callbacks)
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        # In a file, a bar is hundreds of lines.
        if bar and sys.stderr.isatty():
            trainer.add_callback(ProgressBar)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Prints the opening."""
        self._started, self._first_step = time.monotonic(), state.global_step
        self._print(state, self.opening)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Estimates the time, once, where it is worth a line."""
        if state.global_step - self._first_step == FIRST_STEPS and self._left(state) > 60.0:
            self._print(state, f"step {state.global_step}/{state.max_steps}  left {clock(self._left(state))}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keeps the training loss."""
        if logs and "loss" in logs:
            self._losses.append(float(logs["loss"]))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Prints the line of an evaluation during training."""
        trained = any("train_runtime" in entry for entry in state.log_history)
        if state.global_step > self._first_step and not trained:
            self._line(args, state)

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Prints the line of an epoch that is not evaluated."""
        if args.eval_strategy == "no":
            self._line(args, state)

    def _line(self, args: Any, state: TrainerState) -> None:
        unit, now, last = _position(state, args)
        parts = [f"{unit} {now:.6g}/{last:g}"]
        if self._losses:
            parts.append(f"loss {sum(self._losses) / len(self._losses):.4g}")
            self._losses = []
        evaluations = evaluated(state, args)
        if evaluations and args.eval_strategy != "no":
            metric = str(args.metric_for_best_model).removeprefix("eval_")
            best_at, best = best_of(evaluations, args)
            named = "" if metric == "accuracy" else f"{metric} "
            parts += [
                f"validation {named}{evaluations[-1][1]:.4g}",
                f"best {best:.4g} ({unit} {best_at:.6g})",
            ]
        parts.append(f"left {clock(self._left(state))}")
        self._print(state, "  ".join(parts))

    def _left(self, state: TrainerState) -> float:
        """Seconds, at the speed of this training so far."""
        done = state.global_step - self._first_step
        return (time.monotonic() - self._started) / max(done, 1) * (state.max_steps - state.global_step)

    @staticmethod
    def _print(state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            say(line, sys.stdout)


def _position(state: TrainerState, args: Any) -> tuple[str, float, float]:
    """Returns what a run is counted in, how far it is and how far it will go: in steps with `max_steps`."""
    if args.max_steps > 0:
        return "step", state.global_step, state.max_steps
    return "epoch", round(state.epoch or 0, 3), state.num_train_epochs


def evaluated(state: TrainerState, args: Any) -> list[tuple[float, float]]:
    """Epoch or step, and value of the metric that selects the checkpoint, of each evaluation in training."""
    unit = _position(state, args)[0]
    metric = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    during = _during_training(state.log_history)
    return [(round(entry[unit], 3), entry[metric]) for entry in during if metric in entry]


def _during_training(log_history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    # What follows the training's own summary was measured with the best checkpoint, not with the last.
    return list(takewhile(lambda entry: "train_runtime" not in entry, log_history))


def best_of(evaluations: list[tuple[float, float]], args: Any) -> tuple[float, float]:
    """The first of the best evaluations."""
    return (max if args.greater_is_better else min)(evaluations, key=lambda entry: entry[1])


def how_it_went(state: TrainerState, args: Any) -> str:
    """Returns ``trained in 0:12, best epoch 3 of 6 (accuracy 0.593)``."""
    seconds = next(entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry)
    evaluations = evaluated(state, args)
    if not evaluations or not args.load_best_model_at_end:
        return f"trained in {clock(seconds)}"
    at, value = best_of(evaluations, args)
    unit, _, last = _position(state, args)
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    return f"trained in {clock(seconds)}, best {unit} {at:.6g} of {last:g} ({metric} {value:.4g})"


def clock(seconds: float) -> str:
    """Returns seconds as ``0:12``, ``12:05`` or ``3:07:00``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def draw_curves(log_history: Iterable[Mapping[str, Any]], title: str) -> bytes:
    """Draws training and validation loss, and validation accuracy, against the epoch; returns a PNG file.

    `log_history` is that of `TrainerState`.
    """
    from matplotlib.figure import Figure

    entries = _during_training(log_history)
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
