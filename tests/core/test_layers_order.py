"""Where registration misleads: stages, heads made first, lists beside the stages, towers, parts of blocks."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torchvision
import transformers
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_models import HandWritten, ResidualBlock
from torch import nn

from hf_lpwd.layer_order import running_order
from hf_lpwd.layers import layer_index_map


def _timm(name, **settings):
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **settings)


def _transformers(name, **settings):
    cls = getattr(transformers, name)
    with torch.device("meta"):
        return cls(cls.config_class(**settings))


def _layers(model, *paths):
    """Stack and layer of what stands under each path, which has to be one."""
    places = layer_index_map(model).places
    found = {}
    for path in paths:
        under = {place[:2] for name, place in places.items() if f"{name}.".startswith(f"{path}.")}
        assert len(under) == 1, (path, under)
        found[path] = under.pop()
    return found


def _assert_layers(model, expected):
    """`expected` has path -> layer, or (stack, layer)."""
    expected = {path: layer if isinstance(layer, tuple) else ("", layer) for path, layer in expected.items()}
    assert _layers(model, *expected) == expected


# Stages that were taken for blocks.


@pytest.mark.parametrize("name", timm.list_models(module="regnet"))
def test_each_block_of_a_regnet_counts(name):
    model = _timm(name)
    blocks = [path for path, _ in model.named_modules() if re.fullmatch(r"s\d\.b\d+", path)]
    layer_map = layer_index_map(model)
    assert layer_map.num_layers == len(blocks) + 1
    _assert_layers(model, {path: i for i, path in enumerate(blocks, start=1)})


@pytest.mark.parametrize(
    ("name", "settings", "blocks", "expected"),
    [
        ("mobileone_s4", {}, 42, {"stages.0.0": 1, "stages.0.3": 4, "stages.1.0": 5, "stages.3.1": 42}),
        ("inception_resnet_v2", {}, 40, {"repeat.0": 1, "mixed_7a": 31, "repeat_2.8": 39, "block8": 40}),
        ("ghostnet_100", {"features_only": True}, 12, {"conv_stem": 0, "blocks_0.0": 1, "blocks_7.0": 12}),
        ("ghostnetv2_100", {"features_only": True}, 12, {"conv_stem": 0, "blocks_0.0": 1, "blocks_7.0": 12}),
        ("efficientnetv2_rw_t", {}, 39, {"conv_stem": 0, "blocks.0.0": 1, "blocks.0.1": 2, "blocks.1.0": 3}),
    ],
)
def test_stages_are_not_blocks(name, settings, blocks, expected):
    model = _timm(name, **settings)
    assert layer_index_map(model).num_layers == blocks + 1
    _assert_layers(model, expected)


def test_stages_of_one_shape_are_not_blocks():
    model = _transformers(
        "Swin2SRForImageSuperResolution", depths=[2, 3], num_heads=[2, 2], embed_dim=16, image_size=16
    )
    stages = {f"swin2sr.encoder.stages.{i}.layers.{j}": 2 * i + j + 1 for i in (0, 1) for j in range(2 + i)}
    ends = {"swin2sr.embeddings": 0, "swin2sr.layernorm": 6, "swin2sr.conv_after_body": 6, "upsample": 6}
    _assert_layers(model, {**stages, **ends})


def test_sequential_of_a_block_and_a_list():
    model = nn.Sequential(
        nn.Linear(4, 8),
        ResidualBlock(8),
        nn.Sequential(ResidualBlock(8), ResidualBlock(8)),
        ResidualBlock(8),
        nn.Linear(8, 2),
    )
    _assert_layers(model, {"0": 0, "1": 1, "2.0": 2, "2.1": 3, "3": 4, "4": 5})


# Heads of as many modules as there are stages.


def _deep_head(width):
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("build", "head", "n"),
    [
        (lambda: _timm("resnet18"), "fc", 9),
        (lambda: torchvision.models.resnet18(), "fc", 9),
        (lambda: _timm("swin_tiny_patch4_window7_224"), "head", 13),
        (lambda: _timm("convnext_atto"), "head", 13),
        (lambda: _timm("pvt_v2_b0"), "head", 9),
    ],
)
def test_a_head_of_several_modules_is_the_head(build, head, n):
    model = build()
    setattr(model, head, _deep_head(512))
    _assert_layers(model, {head: n})


# What is registered elsewhere than it runs.


class _HeadFirst(nn.Module):
    """A head that is made before the backbone which it stands on."""

    def __init__(self, name, head, backbone):
        super().__init__()
        self.add_module(name, head)
        self.backbone = backbone
        self.head_name = name

    def forward(self, input_ids):
        return self.get_submodule(self.head_name)(self.backbone(input_ids).last_hidden_state)


def _bert():
    return _transformers(
        "BertModel", hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )


@pytest.mark.parametrize("name", ["fc", "linear", "cls", "qa_outputs", "dense"])
@pytest.mark.parametrize("width", [2, 16])
def test_a_head_made_before_its_backbone_is_the_head(name, width):
    """Of the width of the backbone it looks like an input projection: the running order tells."""
    model = _HeadFirst(name, nn.Linear(16, width), _bert())
    _assert_layers(model, {name: 4, "backbone.embeddings": 0, "backbone.encoder.layer.2": 3})


def test_an_input_projection_before_a_backbone_is_the_stem():
    class InputFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(16, 16)
            self.backbone = _bert()

        def forward(self, input_ids):
            embedded = self.dense(self.backbone.embeddings.word_embeddings(input_ids))
            return self.backbone(inputs_embeds=embedded).last_hidden_state

    _assert_layers(InputFirst(), {"dense": 0})


def test_what_cannot_be_told_is_named():
    """No inputs are known for a forward pass."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 8)
            self.blocks = nn.ModuleList([ResidualBlock(8) for _ in range(2)])

    model = _HeadFirst("dense", nn.Linear(8, 8), Body())
    with pytest.warns(UserWarning, match=r"'dense.weight' is used, so it is taken for the stem"):
        assert layer_index_map(model).places["dense.weight"] == ("", 0, "stem")
    model.dense.requires_grad_(False)
    layer_index_map(model)


@pytest.mark.parametrize(("width", "layer"), [(4, 0), (8, 3)])
def test_beside_embeddings_behind_the_blocks_the_width_tells(width, layer):
    """As Gemma 4's projections, where no inputs are known for a forward pass."""
    model = nn.Module()
    model.blocks = nn.ModuleList([ResidualBlock(8) for _ in range(2)])
    model.embed = nn.Embedding(5, 8)
    model.project = nn.Linear(width, 8)
    with pytest.warns(UserWarning, match=r"'project.weight' is used"):
        places = layer_index_map(model).places
    assert places["embed.weight"].layer == 0
    assert places["project.weight"].layer == layer


def test_the_running_order_leaves_the_model_as_it_was():
    model = _HeadFirst("dense", nn.Linear(16, 16), _bert().to_empty(device="cpu")).train()
    model.backbone.encoder.layer[0].eval()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    _assert_layers(model, {"dense": 4})
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value.nan_to_num(), before[name][1].nan_to_num())


def test_decoder_ends_with_a_convolution_that_is_made_first():
    tower = {"num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = _transformers(
        "CLIPSegForImageSegmentation",
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        extract_layers=[1, 2, 3],
        reduce_dim=8,
        projection_dim=16,
        decoder_num_attention_heads=2,
    )
    decoder = {
        "decoder.film_mul": ("decoder", 0),
        "decoder.reduces.0": ("decoder", 0),
        "decoder.reduces.1": ("decoder", 2),
        "decoder.layers.2": ("decoder", 3),
        "decoder.transposed_convolution": ("decoder", 4),
    }
    _assert_layers(model, {**decoder, "clip.visual_projection": ("clip.vision_model", 5)})


def test_downsampling_behind_the_blocks_that_it_feeds():
    model = _timm("fasternet_t0")
    expected = {"stages.0.blocks.0": 1, "stages.1.downsample": 2, "stages.1.blocks.0": 2}
    expected |= {"stages.2.downsample": 4, "stages.2.blocks.0": 4, "stages.3.downsample": 12}
    _assert_layers(model, {**expected, "stages.3.blocks.0": 12, "stages.3.blocks.1": 13, "conv_head": 14})


def test_transitions_feed_the_next_stage():
    model = _timm("hrnet_w18_small")
    blocks = layer_index_map(model).places
    for i in (1, 2, 3):
        stage = blocks[f"stage{i + 1}.0.branches.0.0.conv1.weight"].layer
        assert {p.layer for name, p in blocks.items() if name.startswith(f"transition{i}.")} == {stage}
    _assert_layers(model, {"final_layer": 9, "classifier": 9})


@pytest.mark.parametrize("name", ["resnet50d", "resnet26t"])
def test_a_deep_stem_is_no_block(name):
    model = _timm(name, features_only=True)
    _assert_layers(model, {"conv1": 0, "bn1": 0, "layer1.0": 1})


def test_layers_between_the_blocks_of_each_stage():
    """Twins' position encodings run behind the first block of each stage."""
    model = _timm("twins_svt_small")
    _assert_layers(model, {"pos_block.0": 1, "pos_block.1": 3, "pos_block.2": 5, "pos_block.3": 15})


# PEFT asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        PrefixTuningConfig(
            task_type="SEQ_CLS", num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=8
        ),
    ],
)
def test_prompts_are_the_stem(config):
    model = transformers.BertForSequenceClassification(_bert().config)
    model = get_peft_model(model, config)
    places = layer_index_map(model).places
    prompts = {place[1:] for name, place in places.items() if name.startswith("prompt_encoder.")}
    assert prompts == {(0, "stem")}
    assert places["base_model.bert.encoder.layer.2.output.dense.weight"].layer == 3


# Towers, backbones and what stands on them; parts of blocks.

_DINOV2 = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28}


def _backbone_config():
    return transformers.Dinov2Config(**_DINOV2, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)


def test_a_neck_is_no_part_of_the_backbone():
    model = _transformers(
        "DepthAnythingForDepthEstimation",
        backbone_config=_backbone_config(),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    layer_map = layer_index_map(model)
    assert layer_map.num_layers_by_stack == {"backbone": 5, "neck": 5}
    expected = {"backbone.embeddings": ("backbone", 0), "backbone.encoder.layer.3": ("backbone", 4)}
    expected |= {"backbone.layernorm": ("backbone", 5), "neck.reassemble_stage": ("neck", 0)}
    expected |= {f"neck.fusion_stage.layers.{i}": ("neck", i + 1) for i in range(4)}
    _assert_layers(model, {**expected, "head": ("neck", 5)})


def test_dpt_and_its_neck():
    model = _transformers(
        "DPTForDepthEstimation",
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 8, 8, 8],
        fusion_hidden_size=8,
    )
    assert layer_index_map(model).num_layers_by_stack == {"dpt": 5, "neck": 5}
    _assert_layers(model, {"dpt.encoder.layer.3": ("dpt", 4), "neck.fusion_stage.layers.3": ("neck", 4)})


_NO_ELEMENTS = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")


@_NO_ELEMENTS
@pytest.mark.parametrize(
    ("name", "settings", "stacks"),
    [
        (
            "GroupViTModel",
            {"vision_config": {"depths": [2, 1, 1]}, "text_config": {"num_hidden_layers": 3}},
            {"text_model": 4, "vision_model": 5},
        ),
        (
            "DepthProModel",
            {
                f"{part}_model_config": {
                    "model_type": "dinov2",
                    "num_hidden_layers": depth,
                    "image_size": 384,
                    "patch_size": 16,
                }
                for part, depth in (("image", 2), ("patch", 3))
            },
            {"encoder.patch_encoder": 4, "encoder.image_encoder": 3},
        ),
        (
            "SamModel",
            {"vision_config": {"num_hidden_layers": 3, "global_attn_indexes": [1]}},
            {"vision_encoder": 4, "mask_decoder": 3},
        ),
        ("LwDetrForObjectDetection", {}, {"model.backbone": 11, "model.decoder": 4}),
    ],
)
def test_towers_and_backbones_count_apart(name, settings, stacks):
    found = layer_index_map(_transformers(name, **settings)).num_layers_by_stack
    assert {stack: found[stack] for stack in stacks} == stacks


def test_parallel_heads_are_no_blocks():
    model = _transformers("SamModel", vision_config={"num_hidden_layers": 2, "global_attn_indexes": [1]})
    heads = ("output_hypernetworks_mlps", "iou_prediction_head")
    _assert_layers(model, {f"mask_decoder.{head}": ("mask_decoder", 3) for head in heads})


@_NO_ELEMENTS
def test_both_class_heads_of_lw_detr_are_heads():
    model = _transformers("LwDetrForObjectDetection")
    heads = ("model.enc_out_class_embed", "model.enc_out_bbox_embed", "class_embed", "bbox_embed")
    _assert_layers(model, dict.fromkeys(heads, ("model.decoder", 4)))


@pytest.mark.parametrize("name", ["XLM", "Flaubert"])
def test_lists_that_run_in_turn_make_one_block_together(name):
    model = _transformers(
        f"{name}ForSequenceClassification", emb_dim=16, n_layers=3, n_heads=2, vocab_size=50
    )
    expected = {"transformer.embeddings": 0, "transformer.layer_norm_emb": 0, "sequence_summary": 4}
    for part in ("attentions", "layer_norm1", "ffns", "layer_norm2"):
        expected |= {f"transformer.{part}.{i}": i + 1 for i in range(3)}
    _assert_layers(model, expected)


@pytest.mark.parametrize("sparse_step", [1, 2])
def test_experts_are_no_blocks(sparse_step):
    model = _transformers(
        "SwitchTransformersForConditionalGeneration",
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        num_experts=4,
        num_sparse_encoder_layers=2 // sparse_step,
        num_sparse_decoder_layers=2 // sparse_step,
        vocab_size=50,
    )
    assert layer_index_map(model).num_layers_by_stack == {"encoder": 3, "decoder": 3}
    _assert_layers(model, {f"{s}.block.{i}": (s, i + 1) for s in ("encoder", "decoder") for i in (0, 1)})


def test_a_module_that_stands_in_a_list_too():
    """As the pooling layer of transformers' HGNetV2 does, which its classifier holds once more."""
    model = HandWritten()
    model.tail = nn.ModuleList([model.last_norm, model.out])
    _assert_layers(model, {"project": 0, "body.2": 3, "last_norm": 4, "out": 4})


def test_equal_lists_one_behind_the_other():
    """As CoAtNet's: convolutional blocks, then as many with attention; no forward pass is known."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(4, 8)
            self.first = nn.ModuleList([ResidualBlock(8) for _ in range(2)])
            self.second = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2)])

    with pytest.warns(UserWarning, match=r"'second.0.self_attn.in_proj_weight' is used, so it is taken"):
        layers = _layers(Two(), "stem", "first.0", "first.1", "second.0", "second.1")
    assert [layer for _, layer in layers.values()] == [0, 1, 2, 3, 4]


def test_hand_written_network_is_told_without_a_forward_pass(monkeypatch):
    monkeypatch.setattr(HandWritten, "forward", None)
    _assert_layers(HandWritten(), {"project": 0, "body.2": 3, "last_norm": 4, "out": 4})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConditionalDetrModel", {"decoder.ref_point_head": ("decoder", 0)}),
        (
            "DabDetrModel",
            dict.fromkeys(("decoder.ref_point_head", "decoder.ref_anchor_head"), ("decoder", 0)),
        ),
        ("DeformableDetrModel", {"reference_points": ("decoder", 0), "level_embed": ("encoder", 0)}),
        ("GroundingDinoModel", {"input_proj_vision": ("encoder", 0), "enc_output": ("encoder", 7)}),
        ("UVDocBackbone", {"resnet.resnet_head": ("resnet", 0)}),
    ],
)
def test_what_enters_a_stack_is_its_stem_whatever_it_is_called_and_wherever_it_stands(name, expected):
    _assert_layers(_transformers(name), expected)


def test_encoder_and_decoder_count_apart_also_beside_a_third_stack():
    """The quantizer, which runs between them, is registered behind them."""
    with pytest.warns(UserWarning, match=r"'decoder.conv1.weight' is used, so it is taken for the stem"):
        places = layer_index_map(_transformers("DacModel")).places
    found = {name.removesuffix(".weight"): place[:2] for name, place in places.items()}
    assert found["encoder.conv1"] == ("encoder", 0)
    assert found["encoder.conv2"] == ("encoder", 13)
    assert found["quantizer.quantizers.0.in_proj"] == ("quantizer", 1)
    assert found["decoder.conv1"] == ("decoder", 0)
    assert found["decoder.block.0.res_unit1.conv1"] == ("decoder", 1)
    assert found["decoder.conv2"] == ("decoder", 13)


def test_what_enlarges_the_masks_is_the_head():
    model = _transformers("EomtForUniversalSegmentation", num_hidden_layers=6)
    _assert_layers(model, {"layers.5": 6, "upscale_block.block.0": 7, "mask_head": 7})


def test_lists_in_turn_are_told_where_inputs_have_choices():
    model = _transformers("FlaubertForMultipleChoice", n_layers=3, emb_dim=16, n_heads=2)
    expected = {f"transformer.{kind}.{i}": i + 1 for kind in ("attentions", "ffns") for i in range(3)}
    _assert_layers(model, expected)


def test_the_running_order_of_a_mixture_of_experts_is_known():
    """Its experts are multiplied in groups, which the meta device refuses in float32."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes |= {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "vocab_size": 20,
        "num_hidden_layers": 2,
    }
    model = _transformers("Qwen3MoeForCausalLM", **sizes)
    rank = running_order(model)
    first = [rank[id(layer.mlp.experts.down_proj)] for layer in model.model.layers]
    assert rank[id(model.model.embed_tokens.weight)] < first[0] < first[1] < rank[id(model.lm_head.weight)]


def test_the_running_order_of_a_model_that_selects_by_a_mask_is_known():
    class Selects(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.Linear(4, 2), nn.Linear(4, 4)

        def forward(self, pixel_values):
            hidden = self.early(pixel_values.mean(1)[..., :4])
            return self.late(hidden[hidden.sum(-1) > 0])

    model = Selects()
    rank = running_order(model)
    assert rank[id(model.early.weight)] < rank[id(model.late.weight)]
