"""What identifies a run, kept in its output folder, so that another run cannot be mixed into it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_lpwd.config import SETTINGS
from hf_lpwd.files import RECORD, write_json
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.splits import Splits
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.training_args import ImageTrainingArguments

_NOT_THE_RUN = {"cache_dir", "token", "trust_remote_code"}
_ABOVE_ALL = ("dataset_name", "train_dir", "model_name_or_path", "model_type")
_LENGTH = {"num_train_epochs", "max_steps"}
#: Where only these differ and their product does not, a step sees the same samples.
_DIVISION = ("devices", "per_device_train_batch_size", "gradient_accumulation_steps")
_OF_THE_RUN = (
    *SETTINGS,
    "optim",
    "optim_args",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "mixed_precision",
    "seed",
    "data_seed",
)

logger = logging.get_logger(__name__)


def run_settings(
    model_args: ModelArguments, data_args: DataTrainingArguments, training_args: ImageTrainingArguments
) -> dict[str, Any]:
    """Returns the settings that decide what a run computes, by name; none of them is secret."""
    settings = {
        field.name: getattr(part, field.name)
        for part in (model_args, data_args)
        for field in fields(part)
        if field.name not in _NOT_THE_RUN
    }
    settings |= {name: getattr(training_args, name) for name in _OF_THE_RUN}
    settings["devices"] = training_args.world_size * max(1, training_args.n_gpu)
    return json.loads(json.dumps(settings, default=str))


def data_settings(splits: Splits) -> dict[str, Any]:
    """Returns what tells a data set from another one of the same name: its classes and its rows per split."""
    return {"class_names": splits.class_names, "rows": splits.source_sizes}


def check_output_dir(output_dir: str, settings: Mapping[str, Any]) -> None:
    """Raises a ValueError if `output_dir` holds something else than the run of these settings.

    A run may go on with another number of devices if its steps see as many samples as before; a warning says
    what is different.

    Args:
        output_dir: A folder, there or not.
        settings: From `run_settings` and, once the data is loaded, `data_settings`.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file: name a folder")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir is {output_dir}, but there is no right to write in {there}")
    if not folder.exists() or not any(not path.name.startswith(".") for path in folder.iterdir()):
        return
    record = folder / RECORD
    if not record.exists():
        raise ValueError(
            f"output_dir {output_dir} is not empty and holds no run of hf-lpwd: name another one"
        )
    try:
        there = json.loads(record.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{record} cannot be read ({error}): name another output_dir") from None
    changed = [name for name in settings if there.get(name) != settings[name]]
    division = [name for name in _DIVISION if name in changed]
    samples = [math.prod(values.get(name) or 0 for name in _DIVISION) for values in (there, settings)]
    if division and samples[0] == samples[1]:
        changed = [name for name in changed if name not in division]
        differences = ", ".join(f"{name} {there[name]}, now {settings[name]}" for name in division)
        logger.warning_once(
            f"{output_dir}: the run had {differences}. Each step has {samples[0]} samples as before, but the "
            "result is the same only but for rounding and what is drawn at random"
        )
    if changed:
        # Another data set or model brings other defaults with it.
        name = next((name for name in _ABOVE_ALL if name in changed), changed[0])
        then, now = (_short(repr(values.get(name))) for values in (there, settings))
        others = f" (and {len(changed) - 1} other settings)" if len(changed) > 1 else ""
        # The learning rate of each step depends on how many there will be.
        why = "a run cannot be extended, " if name in _LENGTH else ""
        if name in _DIVISION:
            why = f"a step has {samples[1]} samples instead of {samples[0]}, go on with as many, or "
        raise ValueError(
            f"output_dir {output_dir} holds another run: its {name} is {then}, "
            f"now {now}{others}: {why}name another folder"
        )


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def write_record(output_dir: str, settings: Mapping[str, Any]) -> None:
    """Marks `output_dir` as the folder of the run of these settings."""
    write_json(Path(output_dir) / RECORD, dict(settings))
