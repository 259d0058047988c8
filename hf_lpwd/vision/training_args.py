"""`ImageTrainingArguments`: how the main job trains."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lpwd.training_args import LPWDTrainingArguments
from hf_lpwd.vision.ranges import check_ranges

_METRICS = ("accuracy", "f1_macro", "top5_accuracy", "loss")


@dataclass
class ImageTrainingArguments(LPWDTrainingArguments):
    """`LPWDTrainingArguments` with the defaults of a main job that selects the best epoch on validation.

    Where they are not set, `save_strategy` follows `eval_strategy`, and `load_best_model_at_end` is on if
    every saved model has been evaluated. Without `do_train`, `do_eval` and `do_predict` all three are done.
    """

    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When to evaluate on the validation split."}
    )
    save_strategy: SaveStrategy | str | None = field(
        default=None,
        metadata={
            "help": "When to save a checkpoint; default: as eval_strategy.",
            "choices": [strategy.value for strategy in SaveStrategy],
        },
    )
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={"help": "Whether to keep the checkpoint that was best on validation; on where it can be."},
    )
    metric_for_best_model: str | None = field(
        default="accuracy", metadata={"help": "Metric that selects the best checkpoint on validation."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "How many checkpoints are kept, the best one among them."}
    )
    model_license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the trained model, for its card, e.g. apache-2.0; default: none is named."
        },
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint of a run with other settings, as far as its state allows that."
        },
    )
    logging_steps: float = field(
        default=0.02, metadata={"help": "Log every so many steps; below 1, a fraction of all steps."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Has no effect here: batches hold what the model takes."}
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        metric = str(self.metric_for_best_model).removeprefix("eval_")
        if metric not in _METRICS:
            raise ValueError(
                f"metric_for_best_model is {self.metric_for_best_model!r}, but must be one of "
                f"{', '.join(_METRICS)}"
            )
        if not (self.do_train or self.do_eval or self.do_predict):
            for name in ("do_train", "do_eval", "do_predict"):
                setattr(self, name, True)
        if not self.do_train:
            # TrainingArguments would turn do_eval on.
            self.eval_strategy = "no"
        evaluates = IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO
        if self.save_strategy is None:
            self.save_strategy = self.eval_strategy if evaluates else "epoch"
        if self.load_best_model_at_end is None:
            in_step = self.eval_strategy != "steps" or self.save_steps % (self.eval_steps or 1) == 0
            self.load_best_model_at_end = evaluates and self.save_strategy == self.eval_strategy and in_step
        self.remove_unused_columns = False
        # Pinned memory serves copies to an accelerator; without one torch warns.
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
