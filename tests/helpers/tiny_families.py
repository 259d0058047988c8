"""Tiny language, two-tower, detection, segmentation and speech models, made from configurations.

`FAMILIES[name]` is a model's class, its configuration and a batch; `build(name)` makes the model.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

_TOKENS = {"input_ids": torch.arange(8).reshape(2, 4)}
_IMAGES = {"pixel_values": torch.zeros(1, 3, 64, 64)}
_PICTURE = {"pixel_values": torch.zeros(2, 3, 16, 16)}
_WAVE = {"input_values": torch.zeros(1, 400)}
_SPECTRUM = {
    "input_features": torch.zeros(1, 8, 32),
    "decoder_input_ids": torch.zeros(1, 4, dtype=torch.long),
}

_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 0,
}
_CAUSAL = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
_TOWERS = {
    "text_config": {
        **_TOWER,
        "num_hidden_layers": 2,
        "vocab_size": 50,
        "max_position_embeddings": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "vision_config": {**_TOWER, "num_hidden_layers": 3, "image_size": 16, "patch_size": 8},
}


def _resnet(**kwargs: Any) -> transformers.ResNetConfig:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[1, 2, 1, 1], **kwargs
    )


def _swin() -> transformers.SwinConfig:
    return transformers.SwinConfig(
        image_size=64,
        patch_size=2,
        embed_dim=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


_DETR = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}
_SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 20,
}

#: Name -> class of the model, class of its configuration, settings, and a batch.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, torch.Tensor]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _TEXT, _TOKENS),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", _TEXT, _TOKENS),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _TEXT, _TOKENS),
    "roberta_classifier": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT, _TOKENS),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 2,
            "vocab_size": 50,
            "n_positions": 16,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        _TOKENS,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _CAUSAL, _TOKENS),
    "llama_classifier": ("LlamaForSequenceClassification", "LlamaConfig", _CAUSAL, _TOKENS),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _CAUSAL, _TOKENS),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _CAUSAL, _TOKENS),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_CAUSAL, **_MIXTURE}, _TOKENS),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "vocab_size": 50, "decoder_start_token_id": 0},
        {**_TOKENS, "decoder_input_ids": _TOKENS["input_ids"]},
    ),
    "t5_encoder": ("T5EncoderModel", "T5Config", {**_T5, "vocab_size": 50}, _TOKENS),
    "clip": ("CLIPModel", "CLIPConfig", {**_TOWERS, "projection_dim": 8}, {**_TOKENS, **_PICTURE}),
    "clip_vision": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {**_TOWERS["vision_config"], "projection_dim": 8},
        _PICTURE,
    ),
    "siglip": ("SiglipModel", "SiglipConfig", _TOWERS, {**_TOKENS, **_PICTURE}),
    "detr": (
        "DetrForObjectDetection",
        "DetrConfig",
        {**_DETR, "backbone_config": _resnet(out_features=["stage4"])},
        _IMAGES,
    ),
    "detr_timm": (
        "DetrForObjectDetection",
        "DetrConfig",
        {**_DETR, "backbone": "resnet18", "use_timm_backbone": True},
        _IMAGES,
    ),
    "detr_segmentation": (
        "DetrForSegmentation",
        "DetrConfig",
        {
            **_DETR,
            "d_model": 128,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "backbone_config": _resnet(out_features=["stage1", "stage2", "stage3", "stage4"]),
        },
        _IMAGES,
    ),
    "rt_detr": (
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        {
            **{key: value for key, value in _DETR.items() if key != "encoder_layers"},
            "encoder_layers": 1,
            "encoder_hidden_dim": 16,
            "backbone_config": transformers.RTDetrResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 16, 32, 64],
                depths=[1, 2, 1, 1],
                layer_type="basic",
                out_indices=[2, 3, 4],
            ),
            "encoder_in_channels": [16, 32, 64],
            "decoder_in_channels": [16, 16, 16],
            "num_denoising": 2,
        },
        _IMAGES,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "depths": [1, 2, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        _IMAGES,
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        {
            "backbone_config": _swin(),
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "dim_feedforward": 32,
            "encoder_layers": 2,
            "decoder_layers": 4,
            "num_attention_heads": 2,
            "num_queries": 5,
        },
        _IMAGES,
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _SPEECH, _WAVE),
    "wav2vec2_classifier": (
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        {**_SPEECH, "use_weighted_layer_sum": True, "classifier_proj_size": 8},
        _WAVE,
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **{key: _DETR[key] for key in _DETR if key != "num_queries"},
            "vocab_size": 50,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        _SPECTRUM,
    ),
}


def build(name: str) -> nn.Module:
    """Builds the model `name` on the current default device."""
    model_name, config_name, settings, _ = FAMILIES[name]
    return getattr(transformers, model_name)(getattr(transformers, config_name)(**settings))
