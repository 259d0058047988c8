"""Loads a checkpoint's weights into the model at hand, whatever names `save_pretrained` gave them."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_lpwd.messages import listed


def weight_files(folder: str) -> list[str]:
    """The files of a model's weights in a folder, where `from_pretrained` looks; others may be beside."""
    whole, index = Path(folder, SAFE_WEIGHTS_NAME), Path(folder, SAFE_WEIGHTS_INDEX_NAME)
    if whole.is_file():
        return [str(whole)]
    if index.is_file():
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(str(Path(folder, part)) for part in parts)
    return []


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """Loads the weights of a folder that `save_pretrained` wrote, in place and in the model's precisions.

    `save_pretrained` writes some models, ViT among them, with the names of their Hub checkpoints, which
    `from_pretrained` alone reads. That makes another model, from class and configuration; the one at hand may
    have been changed since: another head, fewer layers, weights of several precisions.

    Args:
        model: Takes the weights; its parameters stay the same objects.
        folder: With `weight_files`.

    Raises:
        ValueError: The folder lacks a weight of the model, or has it in another shape.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    names = LoadStateDictConfig(weight_mapping=get_model_conversion_mapping(model))
    try:
        found, _ = PreTrainedModel._load_pretrained_model(model, None, weight_files(folder), names)
        loaded = {name: value for name, value in model.state_dict().items() if name not in found.missing_keys}
    finally:
        # It puts new parameters in the place of those that the optimizer has.
        for name, tensor in own.items():
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, tensor)
    if found.mismatched_keys:
        name, saved, here = min(found.mismatched_keys)
        raise ValueError(
            f"the checkpoint {folder} has {name} in the shape {tuple(saved)}, this model in {tuple(here)}"
        )
    # Of tied weights, which are one tensor here, one name is saved; constants, as Marian's positions, never.
    known = {id(own[name]) for name in loaded if name in own}
    known |= {id(own[name]) for name in model._keys_to_ignore_on_save or () if name in own}
    lacking = sorted(name for name in found.missing_keys if name not in own or id(own[name]) not in known)
    if lacking:
        raise ValueError(f"the checkpoint {folder} lacks weights of this model: {listed(lacking, most=3)}")
    model.load_state_dict(loaded, strict=False)
