"""Which model to train: its flags, without what takes seconds to import."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml
from transformers.hf_argparser import HfArg

DEFAULT_MODEL = "google/vit-base-patch16-224-in21k"


@dataclass
class ModelArguments:
    """Which model to fine-tune, or to train from scratch; the flags of `run_image_classification.py`.

    Raises:
        ValueError: `config_overrides` cannot be read.
    """

    model_name_or_path: str | None = HfArg(
        default=None,
        help="Model to fine-tune: a folder, or a name on the Hub (also 'timm/...'). "
        f"Default without model_type and config_name: {DEFAULT_MODEL}.",
    )
    model_type: str | None = HfArg(
        default=None, help="Train from scratch a model of this type, e.g. vit, convnext, swin, timm_wrapper."
    )
    config_name: str | None = HfArg(
        default=None,
        help="Configuration, if not model_name_or_path's. Without that one, trains from scratch.",
    )
    config_overrides: dict | str | None = HfArg(
        default=None,
        help="Changes to the configuration of a model trained from scratch: "
        "'hidden_size=192,depths=[2,2,6,2],image_size=32'.",
    )
    cache_dir: str | None = HfArg(
        default=None, help="Folder for what is downloaded from the Hub, if not the usual cache."
    )
    model_revision: str = HfArg(default="main", help="Branch, tag or commit of the model on the Hub.")
    image_processor_name: str | None = HfArg(
        default=None, help="Image processor, if not model_name_or_path's: a folder or a Hub name."
    )
    token: str | None = HfArg(
        default=None, repr=False, help="Token for the Hub; default: the one of `hf auth login`."
    )
    trust_remote_code: bool = HfArg(
        default=False, help="Run model or dataset code from the Hub on this machine."
    )
    ignore_mismatched_sizes: bool = HfArg(
        default=False, help="Start a new head where the checkpoint has another number of classes."
    )

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "model_type", "config_name", "image_processor_name"):
            # A shell variable that is not set must not make the default model.
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ValueError(f"{name} is empty: give it a value, or leave it out")
        if isinstance(self.config_overrides, dict):
            self.config_overrides = json.dumps(self.config_overrides)
        if self.config_overrides is not None:
            if self.model_name_or_path is not None:
                raise ValueError(
                    "config_overrides changes a model trained from scratch, but model_name_or_path is given"
                )
            parse_overrides(self.config_overrides)
        if not (self.model_name_or_path or self.model_type or self.config_name):
            self.model_name_or_path = DEFAULT_MODEL


def parse_overrides(text: dict | str) -> dict[str, Any]:
    """Reads ``"hidden_size=64,depths=[2,2]"`` or a JSON object; what is read already stays as it is.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(text, dict):
        return text
    flow = text if text.lstrip().startswith("{") else "{" + text.replace("=", ": ") + "}"
    try:
        overrides = yaml.safe_load(flow)
    except yaml.YAMLError:
        overrides = None
    if not isinstance(overrides, dict) or any(value is None for value in overrides.values()):
        raise ValueError(
            f"config_overrides is {text!r}, but must be like 'hidden_size=64,depths=[2,2],hidden_act=gelu'"
        )
    return overrides
