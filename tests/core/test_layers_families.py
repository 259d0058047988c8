"""Layers of language, two-tower, detection, segmentation and speech models, in the order in which they run.

What each architecture consists of stands here as its authors describe it, not as it was detected.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from layer_columns import layers_of
from tiny_families import FAMILIES, build

from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.layers import layer_index_map


@dataclass
class Stack:
    """Module paths of a stack: before its blocks, the blocks in order, behind them, what feeds a block."""

    stem: list[str]
    blocks: list[str]
    head: list[str]
    feeds: dict[str, int] = field(default_factory=dict)

    def places(self):
        blocks = {path: i for i, path in enumerate(self.blocks, start=1)}
        ends = dict.fromkeys(self.stem, 0) | dict.fromkeys(self.head, len(self.blocks) + 1)
        return blocks | ends | self.feeds


def _blocks(pattern, count=3):
    return [pattern.format(i) for i in range(count)]


def _decoder_only(head, blocks="model.layers.{}", stem=("model.embed_tokens",)):
    return {"": Stack(list(stem), _blocks(blocks), ["model.norm", *head])}


def _resnet(path):
    """Depths 1, 2, 1, 1."""
    return [f"{path}.stages.{i}.layers.{j}" for i, depth in enumerate((1, 2, 1, 1)) for j in range(depth)]


def _detr(backbone, heads, prefix="model"):
    return {
        f"{prefix}.backbone": backbone,
        f"{prefix}.encoder": Stack(
            [f"{prefix}.input_projection"], _blocks(f"{prefix}.encoder.layers.{{}}", 2), []
        ),
        f"{prefix}.decoder": Stack(
            [f"{prefix}.query_position_embeddings"],
            _blocks(f"{prefix}.decoder.layers.{{}}"),
            [f"{prefix}.decoder.layernorm", *heads],
        ),
    }


def _tower(path, depth, stem, head):
    return Stack([f"{path}.{name}" for name in stem], _blocks(f"{path}.encoder.layers.{{}}", depth), head)


_WAV2VEC2_STEM = ["masked_spec_embed", "feature_extractor", "feature_projection"]
_WAV2VEC2_STEM += ["encoder.pos_conv_embed", "encoder.layer_norm"]
_WAV2VEC2_STEM = [f"wav2vec2.{name}" for name in _WAV2VEC2_STEM]

EXPECTED = {
    # The decoder of a masked-language head is tied to the word embeddings, so its weight has index 0.
    "bert": {"": Stack(["bert.embeddings"], _blocks("bert.encoder.layer.{}"), ["cls"])},
    "bert_classifier": {
        "": Stack(["bert.embeddings"], _blocks("bert.encoder.layer.{}"), ["bert.pooler", "classifier"])
    },
    "roberta": {"": Stack(["roberta.embeddings"], _blocks("roberta.encoder.layer.{}"), ["lm_head"])},
    "roberta_classifier": {
        "": Stack(["roberta.embeddings"], _blocks("roberta.encoder.layer.{}"), ["classifier"])
    },
    "gpt2": {
        "": Stack(["transformer.wte", "transformer.wpe"], _blocks("transformer.h.{}"), ["transformer.ln_f"])
    },
    "llama": _decoder_only(["lm_head"]),
    "llama_classifier": _decoder_only(["score"]),
    "qwen2": _decoder_only(["lm_head"]),
    "qwen3": _decoder_only(["lm_head"]),
    "qwen3_moe": _decoder_only(["lm_head"]),
    # The word embeddings are shared; they have their first index, in the encoder.
    "t5": {
        "encoder": Stack(["shared"], _blocks("encoder.block.{}", 2), ["encoder.final_layer_norm"]),
        "decoder": Stack([], _blocks("decoder.block.{}"), ["decoder.final_layer_norm"]),
    },
    "t5_encoder": {"": Stack(["shared"], _blocks("encoder.block.{}", 2), ["encoder.final_layer_norm"])},
    "clip": {
        "text_model": _tower(
            "text_model",
            2,
            ["embeddings"],
            ["text_model.final_layer_norm", "text_projection", "logit_scale"],
        ),
        "vision_model": _tower(
            "vision_model",
            3,
            ["embeddings", "pre_layrnorm"],
            ["vision_model.post_layernorm", "visual_projection"],
        ),
    },
    "clip_vision": {
        "": _tower(
            "vision_model",
            3,
            ["embeddings", "pre_layrnorm"],
            ["vision_model.post_layernorm", "visual_projection"],
        )
    },
    "siglip": {
        "text_model": _tower(
            "text_model",
            2,
            ["embeddings"],
            ["text_model.final_layer_norm", "text_model.head", "logit_scale", "logit_bias"],
        ),
        "vision_model": _tower(
            "vision_model",
            3,
            ["embeddings"],
            ["vision_model.post_layernorm", "vision_model.head"],
        ),
    },
    "detr": _detr(
        Stack(["model.backbone.model.embedder"], _resnet("model.backbone.model.encoder"), []),
        ["class_labels_classifier", "bbox_predictor"],
    ),
    "detr_timm": _detr(
        Stack(
            ["model.backbone.model.conv1"],
            [f"model.backbone.model.layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)],
            [],
        ),
        ["class_labels_classifier", "bbox_predictor"],
    ),
    "detr_segmentation": _detr(
        Stack(["detr.model.backbone.model.embedder"], _resnet("detr.model.backbone.model.encoder"), []),
        ["detr.class_labels_classifier", "detr.bbox_predictor", "mask_head", "bbox_attention"],
        prefix="detr.model",
    ),
    # A transformer layer over the coarsest features, then fusion from coarse to fine and from fine to coarse.
    "rt_detr": {
        "model.backbone": Stack(
            ["model.backbone.model.embedder"], _resnet("model.backbone.model.encoder"), []
        ),
        "model.encoder": Stack(
            ["model.encoder_input_proj"],
            [
                "model.encoder.aifi.0.layers.0",
                "model.encoder.fpn_blocks.0",
                "model.encoder.fpn_blocks.1",
                "model.encoder.pan_blocks.0",
                "model.encoder.pan_blocks.1",
            ],
            ["model.enc_output", "model.enc_score_head", "model.enc_bbox_head"],
            {
                "model.encoder.lateral_convs.0": 2,
                "model.encoder.lateral_convs.1": 3,
                "model.encoder.downsample_convs.0": 4,
                "model.encoder.downsample_convs.1": 5,
            },
        ),
        "model.decoder": Stack(
            ["model.decoder_input_proj", "model.denoising_class_embed", "model.decoder.query_pos_head"],
            _blocks("model.decoder.layers.{}"),
            ["model.decoder.class_embed", "model.decoder.bbox_embed"],
        ),
    },
    "segformer": {
        "": Stack(
            ["segformer.stages.0.patch_embeddings"],
            [
                f"segformer.stages.{i}.blocks.{j}"
                for i, depth in enumerate((1, 2, 1, 1))
                for j in range(depth)
            ],
            ["segformer.stages.3.layer_norm", "decode_head"],
            {
                "segformer.stages.0.layer_norm": 1,
                "segformer.stages.1.patch_embeddings": 2,
                "segformer.stages.1.layer_norm": 3,
                "segformer.stages.2.patch_embeddings": 4,
                "segformer.stages.2.layer_norm": 4,
                "segformer.stages.3.patch_embeddings": 5,
            },
        )
    },
    # The configuration's decoder_layers counts the prediction before the first layer too.
    "mask2former": {
        "model.pixel_level_module.encoder": Stack(
            ["model.pixel_level_module.encoder.swin.embeddings"],
            [
                f"model.pixel_level_module.encoder.swin.encoder.layers.{i}.blocks.{j}"
                for i, depth in enumerate((1, 2, 1, 1))
                for j in range(depth)
            ],
            [
                "model.pixel_level_module.encoder.swin.layernorm",
                "model.pixel_level_module.encoder.hidden_states_norms",
            ],
            {
                f"model.pixel_level_module.encoder.swin.encoder.layers.{i}.downsample": index
                for i, index in enumerate((2, 4, 5))
            },
        ),
        "model.pixel_level_module.decoder": Stack(
            [
                "model.pixel_level_module.decoder.level_embed",
                "model.pixel_level_module.decoder.input_projections",
            ],
            _blocks("model.pixel_level_module.decoder.encoder.layers.{}", 2),
            [
                f"model.pixel_level_module.decoder.{name}"
                for name in ("mask_projection", "adapter_1", "layer_1")
            ],
        ),
        "model.transformer_module": Stack(
            [
                "model.transformer_module.queries_embedder",
                "model.transformer_module.queries_features",
                "model.transformer_module.level_embed",
            ],
            _blocks("model.transformer_module.decoder.layers.{}"),
            [
                "model.transformer_module.decoder.layernorm",
                "model.transformer_module.decoder.mask_predictor",
                "class_predictor",
            ],
        ),
    },
    "wav2vec2": {"": Stack(_WAV2VEC2_STEM, _blocks("wav2vec2.encoder.layers.{}"), ["lm_head"])},
    # The weights of the sum over all layers are a one-dimensional parameter, which does not decay.
    "wav2vec2_classifier": {
        "": Stack(
            [*_WAV2VEC2_STEM, "layer_weights"],
            _blocks("wav2vec2.encoder.layers.{}"),
            ["projector", "classifier"],
        )
    },
    # The output projection is tied to the decoder's word embeddings.
    "whisper": {
        "model.encoder": Stack(
            ["model.encoder.conv1", "model.encoder.conv2", "model.encoder.embed_positions"],
            _blocks("model.encoder.layers.{}", 2),
            ["model.encoder.layer_norm"],
        ),
        "model.decoder": Stack(
            ["model.decoder.embed_tokens", "model.decoder.embed_positions"],
            _blocks("model.decoder.layers.{}"),
            ["model.decoder.layer_norm"],
        ),
    },
}


def _expected_places(name, parameter_names):
    """Parameter name -> stack and index; each parameter is under one path, and no path is empty."""
    places = {
        path: (label, index)
        for label, stack in EXPECTED[name].items()
        for path, index in stack.places().items()
    }
    found, used = {}, set()
    for parameter_name in parameter_names:
        paths = [path for path in places if f"{parameter_name}.".startswith(f"{path}.")]
        assert len(paths) == 1, (parameter_name, paths)
        found[parameter_name] = places[paths[0]]
        used.add(paths[0])
    assert used == places.keys()
    return found


def test_all_families_are_expected():
    assert EXPECTED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_the_layer_that_the_architecture_says(name):
    with torch.device("meta"):
        model = build(name)
    layer_map = layer_index_map(model)
    names = [parameter_name for parameter_name, _ in model.named_parameters()]
    assert list(layers_of(layer_map)) == names
    found = {key: layer_map.places[key][:2] for key in names}
    assert found == _expected_places(name, names)
    assert layer_map.num_layers_by_stack == {
        label: len(stack.blocks) + 1 for label, stack in EXPECTED[name].items()
    }


# Heads that run behind each block: what they predict guides the next one, or is learned from too.
_HEADS_OF_EACH_BLOCK = ("mask_predictor", "class_embed", "bbox_embed", "decoder.layernorm")


@pytest.mark.parametrize("name", FAMILIES)
def test_indices_rise_in_the_order_in_which_modules_run(name):
    torch.manual_seed(0)
    model = build(name).eval()
    layer_map = layer_index_map(model)
    ran = {label: [] for label in layer_map.num_layers_by_stack}
    blocks_ran = {label: [] for label in ran}
    for path, module in model.named_modules():
        own = [f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)]
        places = {layer_map.places[key][:2] for key in own if key in layer_map.places}
        for label, index in places:
            module.register_forward_pre_hook(
                lambda *_, label=label, entry=(index, path): ran[label].append(entry)
            )
        for label, stack in EXPECTED[name].items():
            if path in stack.blocks:
                module.register_forward_pre_hook(
                    lambda *_, label=label, path=path: blocks_ran[label].append(path)
                )
    with torch.no_grad():
        model(**FAMILIES[name][3])
    assert blocks_ran == {label: stack.blocks for label, stack in EXPECTED[name].items()}
    for entries in ran.values():
        once = [
            entry
            for entry in dict.fromkeys(entries)
            if not any(part in entry[1] for part in _HEADS_OF_EACH_BLOCK)
        ]
        assert [index for index, _ in once] == sorted(index for index, _ in once), once


def test_one_tower_alone_by_freezing_or_by_rules():
    model = build("clip")
    rules = {
        r"vision_model\.(embeddings|pre_layrnorm)\..*": "stem",
        r"vision_model\.encoder\.layers\.(\d+)\..*": "block",
        r"(vision_model|visual_projection)\..*": "head",
        ".*": 0,
    }
    by_rules = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4, layer_map=rules)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.startswith("vis"))
    frozen = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4)

    def rates(optimizer):
        return {
            key: group["weight_decay"]
            for group in optimizer.param_groups
            for key in group["param_names"]
            if group["weight_decay"]
        }

    assert rates(by_rules) == rates(frozen)
    assert set(rates(frozen).values()) == {0.4 * i / 4 for i in (1, 2, 3, 4)}
    assert all(key.startswith("vis") for key in rates(frozen))
