"""What identifies a run of the main job: the settings and the data that decide what it computes."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from hf_lpwd.config import SETTINGS
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.splits import Splits
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.training_args import ImageTrainingArguments

_NOT_THE_RUN = {"cache_dir", "token", "trust_remote_code"}
_ORDER = next(
    field.default for field in fields(ImageTrainingArguments) if field.name == "train_sampling_strategy"
)
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
    "dataloader_drop_last",
    "ignore_data_skip",
    "neftune_noise_alpha",
    "num_train_epochs",
    "max_steps",
    "mixed_precision",
    "seed",
    "data_seed",
)


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
    # None as in the records of runs that were made before it counted.
    order = training_args.train_sampling_strategy
    settings["train_sampling_strategy"] = None if order == _ORDER else order
    settings["devices"] = training_args.world_size * max(1, training_args.n_gpu)
    return json.loads(json.dumps(settings, default=str))


def data_settings(splits: Splits) -> dict[str, Any]:
    """Returns what tells a dataset from another one of the same name: its classes and its rows per split."""
    return {"class_names": splits.class_names, "rows": splits.source_sizes}
