"""The record of a run: its settings, saved in its folder and its checkpoints, and how two runs differ."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_lpwd.files import RECORD, write_json

#: Where only these differ and their product does not, a step sees the same samples.
DIVISION = ("devices", "per_device_train_batch_size", "gradient_accumulation_steps")
#: How long a run is; where the learning rate does not depend on it, a run may be made longer.
LENGTH = ("num_train_epochs", "max_steps")
#: In a record, what was different in the run that this one went on from.
CHANGES = "resumed_with_changes"
#: Hashes of the images and labels of each split; records that were made before there were any lack them.
IMAGES = "images_and_labels"
#: What other settings follow from comes first.
_ABOVE_ALL = ("dataset_name", "train_dir", "model_name_or_path", "model_type")

Differences = dict[str, tuple[Any, Any]]


def write_record(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Marks a folder as that of the run of these settings."""
    write_json(Path(folder, RECORD), as_recorded(settings))


def as_recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as they come back from a record: lists for tuples, text for what is not JSON."""
    return json.loads(json.dumps(dict(settings), default=str))


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the settings of the run that a folder belongs to, None if it names none.

    Raises:
        ValueError: The record cannot be read.
    """
    path = Path(folder, RECORD)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} cannot be read (it holds no settings by name)")
    return settings


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str] | None = None
) -> Differences:
    """Returns the settings in which two runs differ, those first that others follow from.

    `names` are what to compare; by default all settings that either run has.
    """
    then, now = as_recorded(then), as_recorded(now)
    names = list({**now, **then} if names is None else names)
    names.sort(key=lambda name: name not in _ABOVE_ALL)
    return {name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)}


def samples_per_step(settings: Mapping[str, Any]) -> int | None:
    """Returns how many samples a step sees, on all devices together; None if the settings do not say."""
    parts = [settings[name] for name in DIVISION if isinstance(settings.get(name), int)]
    return math.prod(parts) if len(parts) == len(DIVISION) else None


def say_differences(found: Differences, most: int = 4) -> str:
    """Returns ``its seed is 1, now 2; its ... (and N other settings)``."""
    said = [
        f"its {name} is {_short(then)}, now {_short(now)}" for name, (then, now) in list(found.items())[:most]
    ]
    more = f" (and {len(found) - most} other settings)" if len(found) > most else ""
    return "; ".join(said) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
