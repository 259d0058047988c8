"""Inputs for `check_layers.py`, of the shapes that models of transformers take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_lpwd.layer_order import made_up_inputs, setting


def inputs_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What the package makes up, then inputs of other shapes: with choices, boxes, spectrograms, videos."""
    known: dict[str, Any] = {}
    tried = []
    for inputs in made_up_inputs(model):
        known |= inputs
        tried.append({name: getattr(value, "shape", None) for name, value in inputs.items()})
        yield inputs
    taken = inspect.signature(model.forward).parameters.values()
    needed = {p.name for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    for shapes in _more_shapes(model):
        made = {
            p.name: torch.zeros(shapes[p.name][0], dtype=shapes[p.name][1], device="meta")
            for p in taken
            if p.name in shapes
        }
        inputs = {name: known[name] for name in needed & known.keys()} | made
        sizes = {name: value.shape for name, value in inputs.items()}
        if made and needed <= inputs.keys() and sizes not in tried:
            tried.append(sizes)
            yield inputs


def _more_shapes(model: nn.Module) -> Iterator[dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    number = partial(setting, model)
    whole, real = torch.long, torch.float32
    tokens, frames = 16, 1024
    width, bins = (
        number("hidden_size", "d_model", default=768),
        number("num_mel_bins", "feature_size", default=80),
    )
    size = number("image_size", default=224)
    text = {"input_ids": ((1, tokens), whole), "decoder_input_ids": ((1, tokens), whole)}
    images = {"pixel_values": ((1, 3, size, size), real)}
    boxes = {"bbox": ((1, tokens, 4), whole)}
    features = dict.fromkeys(("inputs_embeds", "hidden_states"), ((1, tokens, width), real))
    past = number("context_length", default=16) + max(getattr(model.config, "lags_sequence", None) or [0])
    yield {"input_ids": ((1, 2, tokens), whole)}
    yield text | images
    yield text | boxes
    yield text | boxes | images | {"image": ((1, 3, size, size), real)}
    yield {"visual_feats": ((1, 4, 2048), real), "visual_pos": ((1, 4, 4), real)} | text
    yield {"flattened_patches": ((1, 32, 770), real)} | text
    yield {"pixel_values_videos": ((1, 16, 3, size, size), real)}
    yield {"pixel_values": ((1, number("num_frames", default=16), 3, size, size), real)} | text
    yield {"pixel_values": ((1, 2, 3, size, size), real)}
    for name in ("input_values", "input_features", "spectrogram"):
        lengths = {"decoder_input_ids": text["decoder_input_ids"], "attention_mask": ((1, frames), whole)}
        yield {name: ((1, frames, bins), real)} | lengths
        yield {name: ((1, frames, bins), real), "decoder_input_ids": text["decoder_input_ids"]}
        yield {name: ((1, 1, frames, bins), real)} | text
        yield {name: ((1, 1, 16_000), real)}
        yield {name: ((1, bins, 3_000), real), "input_features_mask": ((1, 3_000), whole)}
        yield {name: ((1, 16_000), real), "decoder_input_values": ((1, tokens, bins), real)} | text
    yield {"query_embeds": ((1, tokens, width), real)}
    yield features
    yield {"input_ids": ((1, tokens, number("num_codebooks", default=8)), whole)}
    yield {"past_values": ((1, past, number("num_input_channels", default=1)), real)}
    steps = {"past_time_features": ((1, past, 1), real), "past_observed_mask": ((1, past), real)}
    later = {"future_values": ((1, 4), real), "future_time_features": ((1, 4, 1), real)}
    yield {"past_values": ((1, past), real)} | steps | later
    yield {"input_ids": ((1, number("max_position_embeddings", default=2048), width), real)}
