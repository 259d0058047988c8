"""What decays, at which rate, in which group."""

from __future__ import annotations

import re

import pytest
import torch
from timm.optim import param_groups_weight_decay
from tiny_models import TINY_MODELS, HandWritten
from torch import nn

from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.layers import LayerMap, Place, layer_index_map
from hf_lpwd.param_groups import decayed_scalars, layer_param_groups, no_decay_reasons, stack_rates
from hf_lpwd.schedules import layer_rates

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
    exempt = no_decay_reasons(models[name])
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
    assert no_decay_reasons(models[name])[parameter] == reason


@pytest.mark.parametrize("name", [name for name in TINY_MODELS if name.startswith("timm_")])
def test_what_timm_exempts_is_exempt(models, name):
    model = getattr(models[name], "timm_model", models[name])
    listed = getattr(model, "no_weight_decay", set)()
    exempt, _ = param_groups_weight_decay(model, no_weight_decay_list=listed)
    exempt_ids = {id(parameter) for parameter in exempt["params"]}
    names = {key for key, parameter in model.named_parameters() if id(parameter) in exempt_ids}
    assert no_decay_reasons(model).keys() >= names


class _Gained(nn.Conv2d):
    """A weight-standardized convolution: its gain has four axes, but scales channels."""

    def __init__(self):
        super().__init__(2, 3, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(3, 1, 1, 1))


def test_shape_tells_scales_from_matrices():
    model = nn.ModuleDict({"conv": _Gained(), "row": nn.Linear(4, 1, bias=False)})
    assert no_decay_reasons(model) == {"conv.gain": "one-dimensional"}


def test_partitioned_weights_are_told_from_biases():
    model = HandWritten()
    exempt, groups = no_decay_reasons(model), _groups(model)
    counts = decayed_scalars(model, layer_index_map(model), exempt)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert no_decay_reasons(model) == exempt
    assert [group["param_names"] for group in _groups(model)] == [group["param_names"] for group in groups]
    assert decayed_scalars(model, layer_index_map(model), exempt) == counts


def test_decay_all_exempts_nothing(models):
    assert no_decay_reasons(models["swinv2"], decay_all=True) == {}


def test_pattern_of_the_user_takes_the_place_of_the_rule():
    model = HandWritten(depth=1)
    assert no_decay_reasons(model, no_decay=r"^out\.") == {
        "out.weight": r"matches no_decay_pattern '^out\\.'",
        "out.bias": r"matches no_decay_pattern '^out\\.'",
    }
    assert no_decay_reasons(model, no_decay=["norm", r"\.bias$"]).keys() == {
        "project.bias",
        "body.0.norm.weight",
        "body.0.norm.bias",
        "body.0.up.bias",
        "body.0.down.bias",
        "last_norm.weight",
        "last_norm.bias",
        "out.bias",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_decay": "bias", "decay_all": True}, "no_decay='bias' is given: drop one"),
        ({"no_decay": ["bias", "gamma"]}, "'gamma' matches no parameter; names are like 'project.weight'"),
    ],
)
def test_wrong_no_decay_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        no_decay_reasons(HandWritten(), **settings)


def _groups(model, schedule="linear", layers=None, **exempt):
    layer_map = layer_index_map(model, layers)
    reasons = no_decay_reasons(model, **exempt)
    return layer_param_groups(
        model, layer_map, stack_rates(model, layer_map, reasons, 0.8, schedule), reasons
    )


def test_one_group_for_each_rate():
    model = HandWritten()
    groups = _groups(model)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.2, 0.4, 0.6000000000000001, 0.8]
    assert [group["layer_indices"] for group in groups] == [[0, 1, 2, 3, 4], [1], [2], [3], [4]]
    assert [group["param_names"] for group in groups[1:]] == [
        ["body.0.up.weight", "body.0.down.weight"],
        ["body.1.up.weight", "body.1.down.weight"],
        ["body.2.up.weight", "body.2.down.weight"],
        ["out.weight"],
    ]
    by_name = dict(model.named_parameters())
    for group in groups:
        assert group.keys() == {"params", "param_names", "weight_decay", "layer_indices"}
        assert [id(p) for p in group["params"]] == [id(by_name[name]) for name in group["param_names"]]
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(by_name)


def test_uniform_decays_stem_and_head_alike(models):
    for name in ("bert", "gpt2", "vit"):
        exempt, decayed = _groups(models[name], "uniform")
        assert exempt["weight_decay"] == 0.0
        assert decayed["weight_decay"] == 0.8
        assert set(decayed["param_names"]) == _named(models[name], DECAYED[name])


def test_decay_all_with_uniform_is_one_group():
    model = HandWritten()
    (group,) = _groups(model, "uniform", decay_all=True)
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    assert group["layer_indices"] == [0, 1, 2, 3, 4]


def test_frozen_parameters_are_left_out():
    model = HandWritten()
    model.body[1].requires_grad_(False)
    groups = _groups(model)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.2, 0.6000000000000001, 0.8]
    assert not any(name.startswith("body.1.") for group in groups for name in group["param_names"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        _groups(model)


def test_tied_weight_is_in_one_group_at_its_first_layer():
    model = TINY_MODELS["gpt2"]()
    assert model.lm_head.weight is model.transformer.wte.weight
    holders = [
        (group["weight_decay"], group["layer_indices"][0])
        for group in _groups(model, "reverse")
        for parameter in group["params"]
        if parameter is model.lm_head.weight
    ]
    assert holders == [(0.8, 0)]


def test_each_tower_has_its_own_rates(models):
    groups = _groups(models["clip"])
    rate = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    text, vision = layer_rates(0.8, 3), layer_rates(0.8, 4)
    for i in range(2):
        assert rate[f"text_model.encoder.layers.{i}.mlp.fc1.weight"] == text[i + 1]
    for i in range(3):
        assert rate[f"vision_model.encoder.layers.{i}.mlp.fc1.weight"] == vision[i + 1]
    assert rate["text_projection.weight"] == rate["visual_projection.weight"] == 0.8
    assert rate["text_model.embeddings.token_embedding.weight"] == 0.0


def test_decayed_scalars_counts_by_layer():
    model = HandWritten(depth=2, width=8)
    layer_map = layer_index_map(model)
    assert decayed_scalars(model, layer_map, no_decay_reasons(model)) == {"": [32, 256, 256, 24]}
    assert decayed_scalars(model, layer_map, {}) == {"": [40, 296, 296, 16 + 27]}
    model.body[0].up.requires_grad_(False)
    assert decayed_scalars(model, layer_map, no_decay_reasons(model)) == {"": [32, 128, 256, 24]}


@pytest.mark.parametrize("name", ["clip", "t5", "swin"])
@pytest.mark.parametrize("schedule", ["linear", "reverse", "cosine"])
def test_budget_is_matched_in_each_stack(models, name, schedule):
    model = models[name]
    layer_map = layer_index_map(model)
    exempt = no_decay_reasons(model)
    rates = stack_rates(model, layer_map, exempt, 0.8, schedule, match_budget=True)
    groups = layer_param_groups(model, layer_map, rates, exempt)
    for stack in layer_map.num_layers_by_stack:
        decayed = [
            (parameter.numel(), group["weight_decay"])
            for group in groups
            for key, parameter in zip(group["param_names"], group["params"], strict=True)
            if layer_map.stack_by_name[key] == stack and key not in exempt
        ]
        mean = sum(size * rate for size, rate in decayed) / sum(size for size, _ in decayed)
        assert mean == pytest.approx(0.8, rel=1e-12)


def test_list_of_rates_has_to_fit_every_stack(models):
    layer_map = layer_index_map(models["clip"])
    with pytest.raises(ValueError, match="lists 5 rates, but the model has 4 layer indices"):
        stack_rates(models["clip"], layer_map, {}, 0.8, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_optimizer_takes_rules_and_maps():
    rules = {"project.*": "stem", r"body\.(\d+)\..*": "block", ".*": "head"}
    settings = {"lr": 0.1, "weight_decay": 0.8}
    found = create_lpwd_optimizer(HandWritten(), **settings)
    for given in (rules, layer_index_map(HandWritten())):
        optimizer = create_lpwd_optimizer(HandWritten(), layer_map=given, **settings)
        assert [(g["weight_decay"], g["param_names"]) for g in optimizer.param_groups] == [
            (g["weight_decay"], g["param_names"]) for g in found.param_groups
        ]


def test_layer_map_of_the_user_decides():
    rules = {r"body\.(\d+)\..*": "block", "project.*": "head", ".*": "stem"}
    rate = {
        name: group["weight_decay"]
        for group in _groups(HandWritten(), layers=rules)
        for name in group["param_names"]
    }
    assert rate["project.weight"] == 0.8
    assert rate["body.0.up.weight"] == 0.2
    assert rate["out.weight"] == 0.0
    layer_map = layer_index_map(HandWritten())
    moved = LayerMap({**layer_map.places, "out.weight": Place("", 2, "mine")}, {"": 4})
    groups = _groups(HandWritten(), layers=moved)
    assert ["body.1.up.weight", "body.1.down.weight", "out.weight"] in [g["param_names"] for g in groups]
