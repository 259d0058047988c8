"""`DecayReport`: a callback that shows, once, what the optimizer of a Trainer really decays."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_lpwd.decay_measurement import DecayMeasurement, measure_decay
from hf_lpwd.plan import LayerPlan


class DecayReport(TrainerCallback):
    """Measures the optimizer's decay when training begins, prints it, and keeps it in the Trainer's log.

    Training is the same, bit for bit, with and without it. Under DeepSpeed, or around an optimizer that needs
    a closure, it prints the reason why nothing was measured.

    Args:
        plan: What is to be expected; see `measure_decay`. `LPWDTrainer` has it as `trainer.layer_plan`.
        quiet: Neither print nor log: only keep the `measurement`.

    Attributes:
        measurement: The measurement, once training has begun; None if there is none.

    Example:
        ``Trainer(..., callbacks=[DecayReport()])``
    """

    def __init__(self, plan: LayerPlan | None = None, *, quiet: bool = False) -> None:
        self.plan = plan
        self.quiet = quiet
        self.measurement: DecayMeasurement | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures; prints and logs, unless it is quiet."""
        try:
            self.measurement = measure_decay(kwargs["optimizer"], kwargs["model"], plan=self.plan)
        except (TypeError, ValueError, RuntimeError) as error:
            if state.is_world_process_zero and not self.quiet:
                print(f"The decay was not measured: {error}")
            return
        if self.quiet:
            return
        if state.is_world_process_zero:
            print(self.measurement)
        # A run that goes on from a checkpoint has it already.
        if not any("decay_findings" in entry for entry in state.log_history):
            found = {"decay_findings": self.measurement.findings, "decay_layers": self.measurement.rows()}
            state.log_history.append({"step": state.global_step, "epoch": state.epoch or 0.0, **found})
