"""Every image classifier of transformers, every family of timm: layers of all parameters, in running order.

Models have their default size but no weights: they are built, and run, on the meta device.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import timm
import torch
import transformers
from layer_columns import layers_of
from timm.models import group_parameters, model_entrypoint
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_lpwd.exemptions import exemptions
from hf_lpwd.layers import layer_index_map


def _blocks(layer_map):
    """Path of each block -> (stack, index)."""
    return {
        place.module.removeprefix("block "): (place.stack, place.layer)
        for place in layer_map.places.values()
        if place.module.startswith("block ")
    }


def _check_indices(model, layer_map):
    names = [name for name, _ in model.named_parameters()]
    assert list(layers_of(layer_map)) == names
    for stack, n in layer_map.num_layers_by_stack.items():
        indices = {place.layer for place in layer_map.places.values() if place.stack == stack}
        assert indices == set(range(n + 1))
        assert sorted(i for s, i in _blocks(layer_map).values() if s == stack) == list(range(1, n))
    stem = [name for name, index in layers_of(layer_map).items() if index == 0]
    assert names[0] in stem or layer_map.places[names[0]].module == "head"
    exempt = exemptions(model)
    assert any(name in stem for name in names if name not in exempt)


def _check_running_order(model, layer_map, *args, **kwargs):
    ran = []
    for path, (_, index) in _blocks(layer_map).items():
        model.get_submodule(path).register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        model.eval()(*args, **kwargs)
    assert list(dict.fromkeys(ran)) == list(range(1, layer_map.num_layers))


# Dinat needs the natten kernels, which have no wheel for every platform.
_NOT_BUILT = {"dinat"}
_TRANSFORMERS = [
    (family, class_name)
    for family, classes in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
    if family not in _NOT_BUILT
    for class_name in ([classes] if isinstance(classes, str) else classes)
]
# These look at values while they run, so they are made small and get weights.
_SMALL = {
    "imagegpt": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 9, "n_positions": 16},
    "siglip2": {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 4,
        }
    },
    "perceiver": {
        "num_latents": 4,
        "d_latents": 16,
        "num_blocks": 2,
        "num_self_attends_per_block": 3,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
    },
}


def _inputs(family, config):
    """A batch for a classifier."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    size = size if isinstance(size, int) else size[0]
    if family == "imagegpt":
        return {"input_ids": torch.zeros(1, 16, dtype=torch.long)}
    if family == "siglip2":
        return {
            "pixel_values": torch.zeros(1, 4, 3 * vision.patch_size**2),
            "pixel_attention_mask": torch.ones(1, 4),
            "spatial_shapes": torch.tensor([[2, 2]]),
        }
    return {"pixel_values": torch.zeros(1, 3, size, size)}


@pytest.mark.parametrize(("family", "class_name"), _TRANSFORMERS)
def test_transformers_image_classifier(family, class_name):
    config = transformers.AutoConfig.for_model(family, **_SMALL.get(family, {}))
    with torch.device("cpu" if family in _SMALL else "meta"):
        model = getattr(transformers, class_name)(config)
        layer_map = layer_index_map(model)
        _check_indices(model, layer_map)
        if family == "shieldgemma2":  # classifies by the words it writes
            assert layer_map.num_layers_by_stack.keys() == {
                "model.model.vision_tower",
                "model.model.language_model",
            }
        else:
            _check_running_order(model, layer_map, **_inputs(family, config))


def _timm_families():
    """One architecture of each of timm's model files: the one with the shortest name."""
    names = defaultdict(list)
    for name in timm.list_models():
        names[model_entrypoint(name).__module__.rsplit(".", 1)[-1]].append(name)
    return {family: min(members, key=lambda name: (len(name), name)) for family, members in names.items()}


_TIMM = _timm_families()

# Where timm's "fine" groups are not the blocks found here: family -> groups that timm makes of the blocks,
# blocks found, and why the difference is meant.
_STAGES = "timm makes one group of a whole stage, whose blocks run one after another"
_OTHERWISE_IN_TIMM = {
    "cait": (
        36,
        38,
        "timm gives the two class-attention blocks at the end the last indices once more",
    ),
    "cpubone": (4, 19, _STAGES),
    "dla": (
        8,
        12,
        "timm makes one group of the innermost trees, which run one after another",
    ),
    "efficientformer": (4, 15, _STAGES),
    "efficientformer_v2": (4, 35, _STAGES),
    "gcvit": (4, 38, _STAGES),
    "hrnet": (13, 16, "timm makes one group of the modules that widen the four resolutions"),
    "mvitv2": (4, 24, _STAGES),
    "pvt_v2": (4, 8, _STAGES),
    "rdnet": (11, 33, _STAGES),
    "xception": (13, 14, "timm makes one group of the last two separable convolutions"),
}
#: Families in which timm's models have no rule at all.
_WITHOUT_RULE_IN_TIMM = {"csatv2", "metaformer", "pit"}


def test_many_families():
    assert len(_TRANSFORMERS) >= 40
    assert len(_TIMM) >= 60


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=pytest.mark.slow if family == "sequencer" else ())
        for family, name in sorted(_TIMM.items())
    ],
)
def test_timm_family(family, name):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=10)
    layer_map = layer_index_map(model)
    _check_indices(model, layer_map)
    images = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
    _check_running_order(model, layer_map, images)

    assert hasattr(model, "group_matcher") is (family not in _WITHOUT_RULE_IN_TIMM)
    if family in _WITHOUT_RULE_IN_TIMM:
        return
    groups = group_parameters(model, model.group_matcher(coarse=False))
    theirs = {key: index for index, keys in groups.items() for key in keys}
    pairs = sorted(
        {
            (place.layer, theirs[key])
            for key, place in layer_map.places.items()
            if place.module.startswith("block ")
        }
    )
    blocks = layer_map.num_layers - 1
    assert [ours for ours, _ in pairs] == list(range(1, blocks + 1))
    assert ([index for _, index in pairs] == sorted(index for _, index in pairs)) is (family != "cait")
    expected = _OTHERWISE_IN_TIMM.get(family, (blocks, blocks))[:2]
    assert (len({index for _, index in pairs}), blocks) == expected


# The same architecture at its default size, with 1000 classes, in transformers and timm.
_IN_BOTH = {
    "Bit": "resnetv2_50",
    "ConvNext": "convnext_tiny",
    "ConvNextV2": "convnextv2_tiny",
    "EfficientNet": "efficientnet_b7",
    "FocalNet": "focalnet_tiny_srf",
    "Hiera": "hiera_base_224",
    "PoolFormer": "poolformer_s12",
    "PvtV2": "pvt_v2_b0",
    "RegNet": "regnety_040",
    "ResNet": "resnet50",
    "Swin": "swin_tiny_patch4_window7_224",
    "SwiftFormer": "swiftformer_xs",
    "Swinv2": "swinv2_tiny_window8_256",
    "ViT": "vit_base_patch16_224",
}


@pytest.mark.parametrize("name", _IN_BOTH)
def test_both_libraries_put_as_many_scalars_into_each_layer(name):
    config = getattr(transformers, f"{name}Config")(num_labels=1000)
    with torch.device("meta"):
        models = [
            getattr(transformers, f"{name}ForImageClassification")(config),
            timm.create_model(_IN_BOTH[name], pretrained=False),
        ]
    ours, theirs = ([0] * (layer_index_map(model).num_layers + 1) for model in models)
    for model, sizes in zip(models, (ours, theirs), strict=True):
        layers = layers_of(layer_index_map(model))
        for key, parameter in model.named_parameters():
            sizes[layers[key]] += parameter.numel()
    assert ours == theirs
