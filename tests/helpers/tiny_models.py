"""Tiny models made from configurations: a few blocks, small widths, random weights.

`TINY_MODELS[name]()` builds a model on the current default device; `tiny_inputs(name)` makes a batch for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from torch import nn

NUM_LABELS = 3

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}
_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}
_CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "num_stages": 4, "image_size": 64}
_TIMM_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 16, "patch_size": 8, "mlp_ratio": 2}
_TIMM_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (1, 2, 1),
    "num_heads": (1, 2, 4),
    "window_size": 4,
}
_TIMM_CONVNEXT = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1)}
_CLIP_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def _hf(config_name: str, model_name: str, **settings: Any) -> Callable[[], nn.Module]:
    """A builder of the transformers model `model_name`."""

    def build() -> nn.Module:
        config = getattr(transformers, config_name)(**settings)
        if "Image" in model_name:
            config.num_labels = NUM_LABELS
        return getattr(transformers, model_name)(config)

    return build


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """A builder of the timm model `name`."""
    return lambda: timm.create_model(name, pretrained=False, num_classes=NUM_LABELS, **settings)


def _timm_wrapper() -> nn.Module:
    config = transformers.TimmWrapperConfig(
        architecture="swin_tiny_patch4_window7_224", model_args=_TIMM_SWIN, num_labels=NUM_LABELS
    )
    return transformers.TimmWrapperForImageClassification(config)


def _clip() -> nn.Module:
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={
                **_CLIP_TOWER,
                "num_hidden_layers": 2,
                "vocab_size": 50,
                "max_position_embeddings": 8,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            vision_config={**_CLIP_TOWER, "num_hidden_layers": 3, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    )


class ResidualBlock(nn.Module):
    """A block as in a network of one's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class HandWritten(nn.Module):
    """A network of one's own: stem, a `ModuleList` of blocks, final norm, head."""

    def __init__(self, depth: int = 3, width: int = 8) -> None:
        super().__init__()
        self.project = nn.Linear(4, width)
        self.body = nn.ModuleList([ResidualBlock(width) for _ in range(depth)])
        self.last_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, NUM_LABELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.project(x)
        for block in self.body:
            x = block(x)
        return self.out(self.last_norm(x))


TINY_MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": _hf("ViTConfig", "ViTForImageClassification", **_VIT),
    "deit": _hf("DeiTConfig", "DeiTForImageClassification", **_VIT),
    "deit_distilled": _hf("DeiTConfig", "DeiTForImageClassificationWithTeacher", **_VIT),
    "beit": _hf(
        "BeitConfig",
        "BeitForImageClassification",
        **_VIT,
        use_relative_position_bias=True,
        use_mask_token=True,
        vocab_size=10,
    ),
    "dinov2": _hf("Dinov2Config", "Dinov2ForImageClassification", **_VIT, mlp_ratio=2),
    "dinov2_registers": _hf(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", **_VIT, mlp_ratio=2
    ),
    "swin": _hf("SwinConfig", "SwinForImageClassification", **_SWIN, use_absolute_embeddings=True),
    "swinv2": _hf("Swinv2Config", "Swinv2ForImageClassification", **_SWIN),
    "convnext": _hf("ConvNextConfig", "ConvNextForImageClassification", **_CONVNEXT),
    "convnextv2": _hf("ConvNextV2Config", "ConvNextV2ForImageClassification", **_CONVNEXT),
    "resnet": _hf(
        "ResNetConfig",
        "ResNetForImageClassification",
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 2, 1, 1],
    ),
    "bert": _hf(
        "BertConfig",
        "BertForMaskedLM",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=16,
    ),
    "gpt2": _hf(
        "GPT2Config",
        "GPT2LMHeadModel",
        n_embd=32,
        n_layer=3,
        n_head=2,
        vocab_size=50,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "t5": _hf(
        "T5Config",
        "T5ForConditionalGeneration",
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        vocab_size=50,
        decoder_start_token_id=0,
    ),
    "clip": _clip,
    "timm_vit": _timm("vit_tiny_patch16_224", **_TIMM_VIT),
    "timm_deit": _timm("deit_tiny_patch16_224", **_TIMM_VIT),
    "timm_deit_distilled": _timm("deit_tiny_distilled_patch16_224", **_TIMM_VIT),
    "timm_beit": _timm("beit_base_patch16_224", **_TIMM_VIT),
    "timm_dinov2": _timm("vit_small_patch14_dinov2", **_TIMM_VIT),
    "timm_dinov2_registers": _timm("vit_small_patch14_reg4_dinov2", **_TIMM_VIT),
    "timm_swin": _timm("swin_tiny_patch4_window7_224", **_TIMM_SWIN),
    "timm_swinv2": _timm("swinv2_tiny_window8_256", **_TIMM_SWIN),
    "timm_convnext": _timm("convnext_atto", **_TIMM_CONVNEXT),
    "timm_convnextv2": _timm("convnextv2_atto", **_TIMM_CONVNEXT),
    "timm_resnet": _timm("resnet50", layers=(1, 2, 1, 1), channels=(8, 16, 24, 32)),
    "timm_wrapper_swin": _timm_wrapper,
    "hand_written": HandWritten,
}

_IMAGE_SIZES = {"swin": 32, "convnext": 64, "resnet": 64}


def tiny_inputs(name: str, batch: int = 2) -> dict[str, torch.Tensor]:
    """A batch for `TINY_MODELS[name]`, by argument name; images have shape (batch, 3, size, size).

    Args:
        name: Key of `TINY_MODELS`.
        batch: Number of samples.
    """
    tokens = torch.arange(4 * batch).reshape(batch, 4) % 50
    if name in ("bert", "gpt2"):
        return {"input_ids": tokens}
    if name == "t5":
        return {"input_ids": tokens, "decoder_input_ids": tokens}
    if name == "hand_written":
        return {"x": torch.randn(batch, 4)}
    size = next((size for family, size in _IMAGE_SIZES.items() if family in name), 16)
    images = {"pixel_values": torch.randn(batch, 3, size, size)}
    if name == "clip":
        return {"input_ids": tokens, **images}
    return {"x": images["pixel_values"]} if name.startswith("timm_") and "wrapper" not in name else images


def partitioned(model: nn.Module) -> nn.Module:
    """Empties the parameters as DeepSpeed's ZeRO 3 does, which keeps their shape in `ds_shape`."""
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = parameter.data.new_empty(0)
    return model
