"""The resolved settings of a run as a file that ``--config`` takes, and that reproduces the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from enum import Enum
from importlib import metadata
from typing import Any

import yaml

#: The name of the file in the folder of a run.
RUN_YAML = "run.yaml"

# Secrets, what the launcher sets, and what belongs to one machine or one start.
_LEFT_OUT = {
    *("token", "hub_token", "resume_from_checkpoint", "local_rank", "dataloader_pin_memory", "disable_tqdm"),
    *("accelerator_config", "parallelism_config", "gradient_checkpointing", "remove_unused_columns"),
}
_LIBRARIES = ("hf-lpwd", "torch", "transformers", "datasets", "timm")


def changed_settings(parts: Sequence[Any]) -> dict[str, Any]:
    """Returns the settings that differ from their defaults, and the seed, as YAML and JSON can hold them.

    Args:
        parts: `ModelArguments`, `DataTrainingArguments` and `ImageTrainingArguments`.
    """
    settings: dict[str, Any] = {}
    for part in parts:
        for field in dataclasses.fields(part):
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
