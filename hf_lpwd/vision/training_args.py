"""`ImageTrainingArguments`: how the main job trains, and the range of each number in it."""

from __future__ import annotations

import base64
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.hf_argparser import HfArg
from transformers.integrations import is_deepspeed_available
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lpwd.training_args import LPWDTrainingArguments

_MANY = 10**9


class Range(NamedTuple):
    """Numbers from `low` to `high`, without these two where they are open."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        return f"{low} and {'below' if self.high_open else 'at most'} {self.high:g}"


_COUNT = Range(1, _MANY)
_STEPS = Range(0, _MANY, low_open=True)
_SEED = Range(0, 2**32 - 1)

#: Flag -> its range; None is allowed where it is the default.
RANGES: dict[str, Range] = {
    "per_device_train_batch_size": Range(1, 10**6),
    "per_device_eval_batch_size": Range(1, 10**6),
    "gradient_accumulation_steps": Range(1, 10**6),
    "num_train_epochs": Range(0, 10**6, low_open=True),
    "learning_rate": Range(0, 10**4),
    "warmup_steps": Range(0, _MANY),
    "adam_beta1": Range(0, 1, high_open=True),
    "adam_beta2": Range(0, 1, high_open=True),
    # At 0 a gradient of 0 makes torch's Adam divide 0 by 0.
    "adam_epsilon": Range(0, 10**3, low_open=True),
    "max_grad_norm": Range(0, _MANY),
    "label_smoothing_factor": Range(0, 1, high_open=True),
    "neftune_noise_alpha": Range(0, _MANY),
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_delay": Range(0, _MANY),
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": _COUNT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0, 1024),
    "dataloader_prefetch_factor": Range(1, 10**6),
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    # Of the custom training loop.
    "num_warmup_steps": Range(0, _MANY),
    "max_train_steps": _COUNT,
}

_METRICS = ("accuracy", "f1_macro", "top5_accuracy", "loss")


@dataclass
class ImageTrainingArguments(LPWDTrainingArguments):
    """`LPWDTrainingArguments` with the defaults of a main job that selects the best epoch on validation.

    Where they are not set, `save_strategy` follows `eval_strategy`, and `load_best_model_at_end` is on if
    every saved model has been evaluated. Without `do_train`, `do_eval` and `do_predict` all three are done.
    """

    eval_strategy: IntervalStrategy | str = HfArg(
        default="epoch", help="When to evaluate on the validation split."
    )
    save_strategy: SaveStrategy | str | None = HfArg(
        default=None,
        help="When to save a checkpoint; default: as eval_strategy.",
        metadata={"choices": [strategy.value for strategy in SaveStrategy]},
    )
    load_best_model_at_end: bool | None = HfArg(
        default=None, help="Whether to keep the checkpoint that was best on validation; on where it can be."
    )
    metric_for_best_model: str | None = HfArg(
        default="accuracy", help="Metric that selects the best checkpoint on validation."
    )
    save_total_limit: int | None = HfArg(
        default=2, help="How many checkpoints are kept, the best one among them."
    )
    model_license: str | None = HfArg(
        default=None,
        help="Licence of the trained model, for its card, e.g. apache-2.0; default: none is named.",
    )
    resume_with_changes: bool = HfArg(
        default=False,
        help="Go on from a checkpoint of a run with other settings, as far as its state allows that.",
    )
    logging_steps: float = HfArg(
        default=0.02, help="Log every so many steps; below 1, a fraction of all steps."
    )
    remove_unused_columns: bool = HfArg(
        default=False, help="Has no effect here: batches hold what the model takes."
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
        if is_deepspeed_available():
            _check_deepspeed(self.deepspeed)
        super().__post_init__()


def _check_deepspeed(given: Any) -> None:
    """Raises a ValueError if `deepspeed` is neither a file of JSON nor JSON, which may be in base64."""
    if not isinstance(given, str):
        return
    is_json = given.lstrip().startswith("{")
    is_file = not is_json and os.path.isfile(given)
    try:
        if is_file:
            config = json.loads(Path(given).read_text(encoding="utf-8"))
        else:
            config = json.loads(given if is_json else base64.urlsafe_b64decode(given))
    except ValueError as error:
        why = f"which is not JSON: {error}" if is_json or is_file else "but there is no such file"
        raise ValueError(f"deepspeed is {given!r}, {why}") from error
    zero = config.get("zero_optimization", {}) if isinstance(config, dict) else None
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise ValueError(
            f"deepspeed is {given!r}, but must hold an object whose zero_optimization has a stage from 0 to 3"
        )


def check_ranges(arguments: Any) -> None:
    """Raises a ValueError that names the first attribute of `arguments` that is out of its range in `RANGES`.

    Examples:
        >>> from types import SimpleNamespace
        >>> check_ranges(SimpleNamespace(adam_beta1=1.5))
        Traceback (most recent call last):
        ValueError: adam_beta1 is 1.5, but must be at least 0 and below 1
    """
    for name, allowed in RANGES.items():
        value = getattr(arguments, name, None)
        if value is not None and value not in allowed:
            raise ValueError(f"{name} is {value}, but must be {allowed}")
    max_steps = getattr(arguments, "max_steps", -1)
    if max_steps != -1 and max_steps not in _COUNT:
        raise ValueError(f"max_steps is {max_steps}, but must be {_COUNT}, or -1 for num_train_epochs")
