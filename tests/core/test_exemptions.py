"""What does not decay, and why: all weights that decay in 24 small models, by name."""

from __future__ import annotations

import re

import pytest
import torch
from timm.optim import param_groups_weight_decay
from tiny_models import TINY_MODELS, HandWritten
from torch import nn

from hf_lpwd.exemptions import exemptions

_VIT = (
    {"embeddings.patch_embeddings.projection"}
    | {f"attention.{letter}_proj" for letter in "qkvo"}
    | {"mlp.fc1", "mlp.fc2"}
)
_TIMM_VIT = {"patch_embed.proj", "blocks.#.attn.qkv", "blocks.#.attn.proj", "blocks.#.mlp.fc1"} | {
    "blocks.#.mlp.fc2",
    "head",
}
_TIMM_SWIN = {
    "patch_embed.proj",
    "layers.#.blocks.#.attn.qkv",
    "layers.#.blocks.#.attn.proj",
    "layers.#.blocks.#.mlp.fc1",
    "layers.#.blocks.#.mlp.fc2",
    "layers.#.downsample.reduction",
    "head.fc",
}
_TIMM_CONVNEXT = {
    "stem.0",
    "stages.#.downsample.1",
    "stages.#.blocks.#.conv_dw",
    "stages.#.blocks.#.mlp.fc1",
    "stages.#.blocks.#.mlp.fc2",
    "head.fc",
}


def _vit(model, layers, *heads):
    parts = {f"{model}.{part}" if part.startswith("emb") else f"{model}.{layers}.#.{part}" for part in _VIT}
    return parts | set(heads)


def _convnext(model):
    layer = f"{model}.encoder.stages.#.layers.#"
    return {
        f"{model}.embeddings.patch_embeddings",
        f"{model}.encoder.stages.#.downsampling_layer.1",
        f"{layer}.dwconv",
        f"{layer}.pwconv1",
        f"{layer}.pwconv2",
        "classifier",
    }


# Modules whose `weight` decays; block and stage numbers are written #. Nothing else decays.
DECAYED = {
    "vit": _vit("vit", "layers", "classifier"),
    "deit": _vit("deit", "layers", "classifier"),
    "deit_distilled": _vit("deit", "layers", "cls_classifier", "distillation_classifier"),
    "beit": _vit("beit", "layers", "classifier"),
    "dinov2": _vit("dinov2", "encoder.layer", "classifier"),
    "dinov2_registers": _vit("dinov2_with_registers", "encoder.layer", "classifier"),
    "swin": {
        "swin.embeddings.patch_embeddings.projection",
        *[f"swin.encoder.layers.#.blocks.#.attention.{letter}_proj" for letter in "qkvo"],
        "swin.encoder.layers.#.blocks.#.mlp.fc1",
        "swin.encoder.layers.#.blocks.#.mlp.fc2",
        "swin.encoder.layers.#.downsample.reduction",
        "classifier",
    },
    "swinv2": {
        "swinv2.embeddings.patch_embeddings.projection",
        *[f"swinv2.encoder.layers.#.blocks.#.attention.self.{part}" for part in ("query", "key", "value")],
        "swinv2.encoder.layers.#.blocks.#.attention.output.dense",
        "swinv2.encoder.layers.#.blocks.#.intermediate.dense",
        "swinv2.encoder.layers.#.blocks.#.output.dense",
        "swinv2.encoder.layers.#.downsample.reduction",
        "classifier",
    },
    "convnext": _convnext("convnext"),
    "convnextv2": _convnext("convnextv2"),
    "resnet": {
        "resnet.embedder.embedder.convolution",
        "resnet.encoder.stages.#.layers.#.shortcut.convolution",
        *[f"resnet.encoder.stages.#.layers.#.layer.{i}.convolution" for i in range(3)],
        "classifier.1",
    },
    "bert": {
        "bert.embeddings.word_embeddings",
        "bert.embeddings.token_type_embeddings",
        *[f"bert.encoder.layer.#.attention.self.{part}" for part in ("query", "key", "value")],
        "bert.encoder.layer.#.attention.output.dense",
        "bert.encoder.layer.#.intermediate.dense",
        "bert.encoder.layer.#.output.dense",
        "cls.predictions.transform.dense",
    },
    "gpt2": {
        "transformer.wte",
        *[f"transformer.h.#.{part}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")],
    },
    "t5": {
        "shared",
        *[f"{s}.block.#.layer.0.SelfAttention.{letter}" for s in ("encoder", "decoder") for letter in "qkvo"],
        *[f"decoder.block.#.layer.1.EncDecAttention.{letter}" for letter in "qkvo"],
        *[f"encoder.block.#.layer.1.DenseReluDense.{part}" for part in ("wi", "wo")],
        *[f"decoder.block.#.layer.2.DenseReluDense.{part}" for part in ("wi", "wo")],
    },
    "clip": {
        "text_model.embeddings.token_embedding",
        "vision_model.embeddings.patch_embedding",
        *[
            f"{tower}.encoder.layers.#.{part}"
            for tower in ("text_model", "vision_model")
            for part in (*[f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")], "mlp.fc1", "mlp.fc2")
        ],
        "text_projection",
        "visual_projection",
    },
    "timm_vit": _TIMM_VIT,
    "timm_deit": _TIMM_VIT,
    "timm_deit_distilled": {*_TIMM_VIT, "head_dist"},
    "timm_beit": _TIMM_VIT,
    "timm_dinov2": _TIMM_VIT,
    "timm_dinov2_registers": _TIMM_VIT,
    "timm_swin": _TIMM_SWIN,
    "timm_swinv2": _TIMM_SWIN,
    "timm_convnext": _TIMM_CONVNEXT,
    "timm_convnextv2": _TIMM_CONVNEXT,
    "timm_resnet": {
        "conv1",
        "fc",
        *[f"layer#.#.{part}" for part in ("conv1", "conv2", "conv3", "downsample.0")],
    },
    "timm_wrapper_swin": {f"timm_model.{name}" for name in _TIMM_SWIN},
    "hand_written": {"project", "body.#.up", "body.#.down", "out"},
}


@pytest.fixture(scope="module")
def models():
    with torch.device("meta"):
        return {name: build() for name, build in TINY_MODELS.items()}


def _named(model, patterns):
    """The weights that are meant by paths of modules with # for a number; each path means at least one."""
    names = [name for name, _ in model.named_parameters()]
    expressions = {pattern: re.escape(f"{pattern}.weight").replace(r"\#", r"\d+") for pattern in patterns}
    meant = {
        pattern: {name for name in names if re.fullmatch(expression, name)}
        for pattern, expression in expressions.items()
    }
    assert all(meant.values()), meant
    return set().union(*meant.values())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_exactly_these_weights_decay(models, name):
    exempt = exemptions(models[name])
    decayed = {key for key, _ in models[name].named_parameters() if key not in exempt}
    assert decayed == _named(models[name], DECAYED[name])


# One name of each kind that Trainer's own rule would decay, or that only a name tells apart.
@pytest.mark.parametrize(
    ("name", "parameter", "reason"),
    [
        ("vit", "vit.embeddings.cls_token", "one-dimensional"),
        ("vit", "vit.embeddings.position_embeddings", "position, token or scale embedding"),
        ("vit", "vit.layers.0.attention.q_proj.bias", "bias"),
        ("vit", "vit.layernorm.weight", "normalization"),
        ("dinov2_registers", "dinov2_with_registers.embeddings.mask_token", "one-dimensional"),
        (
            "dinov2_registers",
            "dinov2_with_registers.embeddings.register_tokens",
            "position, token or scale embedding",
        ),
        ("dinov2", "dinov2.encoder.layer.0.layer_scale1.lambda1", "one-dimensional"),
        ("convnext", "convnext.encoder.stages.0.layers.0.layer_scale_parameter", "one-dimensional"),
        ("convnextv2", "convnextv2.encoder.stages.0.layers.0.grn.weight", "normalization"),
        (
            "swin",
            "swin.encoder.layers.1.blocks.0.attention.relative_position_bias.relative_position_bias_table",
            "position, token or scale embedding",
        ),
        ("swinv2", "swinv2.encoder.layers.0.blocks.0.attention.self.logit_scale", "one-dimensional"),
        (
            "t5",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "position, token or scale embedding",
        ),
        ("clip", "logit_scale", "one-dimensional"),
        ("timm_dinov2_registers", "reg_token", "named by the model's no_weight_decay()"),
        ("timm_swinv2", "layers.0.blocks.0.attn.cpb_mlp.0.weight", "named by the model's no_weight_decay()"),
        (
            "timm_wrapper_swin",
            "timm_model.layers.1.blocks.0.attn.relative_position_bias_table",
            "named by the model's no_weight_decay()",
        ),
    ],
)
def test_reason_for_not_decaying(models, name, parameter, reason):
    assert exemptions(models[name])[parameter] == reason


@pytest.mark.parametrize("name", [name for name in TINY_MODELS if name.startswith("timm_")])
def test_what_timm_exempts_is_exempt(models, name):
    model = getattr(models[name], "timm_model", models[name])
    listed = getattr(model, "no_weight_decay", set)()
    exempt, _ = param_groups_weight_decay(model, no_weight_decay_list=listed)
    exempt_ids = {id(parameter) for parameter in exempt["params"]}
    names = {key for key, parameter in model.named_parameters() if id(parameter) in exempt_ids}
    assert exemptions(model).keys() >= names


class _Gained(nn.Conv2d):
    """A weight-standardized convolution: its gain has four axes, but scales channels."""

    def __init__(self):
        super().__init__(2, 3, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(3, 1, 1, 1))


def test_shape_tells_scales_from_matrices():
    model = nn.ModuleDict({"conv": _Gained(), "row": nn.Linear(4, 1, bias=False)})
    assert exemptions(model) == {"conv.gain": "one-dimensional"}


def test_a_linear_layer_whose_class_is_called_after_a_norm_decays():
    class NormedLinear(nn.Linear):
        pass

    class ScaleNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

    model = nn.ModuleDict({"head": NormedLinear(4, 3), "last": ScaleNorm()})
    assert exemptions(model) == {"head.bias": "bias", "last.scale": "normalization"}


@pytest.mark.parametrize(
    "name", ["positional_encoding", "position_encodings", "pos_encoding", "pos_enc", "abs_pos_enc"]
)
def test_learned_position_encodings_do_not_decay(name):
    model = nn.Linear(4, 4, bias=False)
    model.register_parameter(name, nn.Parameter(torch.ones(1, 5, 4)))
    model.add_module(f"text_{name}", nn.Embedding(5, 4))
    # A network that makes encodings, by the name of its own layer, is a network.
    model.add_module("pos_encoder", nn.Linear(4, 4, bias=False))
    reason = "position, token or scale embedding"
    assert exemptions(model) == {name: reason, f"text_{name}.weight": reason}


def test_decay_all_exempts_nothing(models):
    assert exemptions(models["swinv2"], decay_all=True) == {}


def test_patterns_replace_the_rule():
    model = HandWritten(depth=1)
    assert exemptions(model, no_decay_patterns=[r"^out\."]) == {
        "out.weight": r"matches no_decay_pattern '^out\\.'",
        "out.bias": r"matches no_decay_pattern '^out\\.'",
    }
    assert exemptions(model, no_decay_patterns=["norm", r"\.bias$"]).keys() == {
        "project.bias",
        "body.0.norm.weight",
        "body.0.norm.bias",
        "body.0.up.bias",
        "body.0.down.bias",
        "last_norm.weight",
        "last_norm.bias",
        "out.bias",
    }


def test_a_parameter_can_refuse_to_decay():
    model = HandWritten()
    model.out.weight._no_weight_decay = True
    assert exemptions(model)["out.weight"] == "marked with _no_weight_decay"
