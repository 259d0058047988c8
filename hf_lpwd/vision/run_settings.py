"""The settings of a run: those that identify it, and all of them as a file that ``--config`` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from hf_lpwd.checkpoints.run_record import IMAGES
from hf_lpwd.config import SETTINGS

if TYPE_CHECKING:  # which take seconds to import; commands that write a card need none of them
    from hf_lpwd.vision.data.data_args import DataTrainingArguments
    from hf_lpwd.vision.data.splits import Splits
    from hf_lpwd.vision.model_args import ModelArguments
    from hf_lpwd.vision.training_args import ImageTrainingArguments

#: The name of the file in the folder of a run.
RUN_YAML = "run.yaml"

# Secrets, what the launcher sets, and what belongs to one machine or one start.
_LEFT_OUT = {
    *("token", "hub_token", "resume_from_checkpoint", "local_rank", "dataloader_pin_memory", "disable_tqdm"),
    *("accelerator_config", "parallelism_config", "gradient_checkpointing", "remove_unused_columns"),
}
_LIBRARIES = ("hf-lpwd", "torch", "transformers", "datasets", "timm")
_NOT_THE_RUN = {"cache_dir", "token", "trust_remote_code"}
_OF_THE_RUN = (
    *SETTINGS,
    *("optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("ignore_data_skip", "neftune_noise_alpha", "num_train_epochs", "max_steps", "mixed_precision"),
    *("seed", "data_seed"),
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
    default = {field.name: field.default for field in fields(training_args)}["train_sampling_strategy"]
    settings["train_sampling_strategy"] = None if order == default else order
    settings["devices"] = training_args.world_size * max(1, training_args.n_gpu)
    return json.loads(json.dumps(settings, default=str))


def data_settings(splits: Splits) -> dict[str, Any]:
    """Returns what tells a dataset from another one of the same name: its classes, rows and images."""
    from hf_lpwd.vision.data.digits import DIGITS

    settings = {"class_names": splits.class_names, "rows": splits.source_sizes}
    # The bytes of scikit-learn's digits, which never change, are those of the installed PNG encoder.
    return settings if splits.name == DIGITS else {**settings, IMAGES: splits.comparison.fingerprints}


def changed_settings(parts: Sequence[Any]) -> dict[str, Any]:
    """Returns the settings that differ from their defaults, and the seed, as YAML and JSON can hold them."""
    settings: dict[str, Any] = {}
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            value = value.value if isinstance(value, Enum) else value
            default = field.default.value if isinstance(field.default, Enum) else field.default
            if field.init and field.name not in _LEFT_OUT and value not in (default, None, [], {}, ""):
                settings[field.name] = value
    # The seed makes a run another run, so that it stands here even where it is the default.
    settings["seed"] = next(part.seed for part in parts if hasattr(part, "seed"))
    return json.loads(json.dumps(settings, default=str))


def run_yaml(parts: Sequence[Any]) -> str:
    """Writes `changed_settings` as YAML."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    return f"# hf-lpwd train --config {RUN_YAML}  ({versions})\n" + yaml.safe_dump(
        changed_settings(parts), sort_keys=False
    )
