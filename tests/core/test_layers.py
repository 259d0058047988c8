"""Layer indices of the architectures that the package promises, block by block."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import timm
import torch
from layer_columns import layers_of, modules_of, stacks_of
from timm.models import group_parameters
from tiny_models import TINY_MODELS, HandWritten, ResidualBlock, partitioned, tiny_inputs
from torch import nn

from hf_lpwd.exemptions import exemptions
from hf_lpwd.layers import LayerMap, Place, layer_index_map
from hf_lpwd.parameters import unwrap_name


def _blocks(pattern, start=1, count=3):
    return {pattern.format(i): start + i for i in range(count)}


def _swin(prefix, stages, downsample_at_end):
    """Depths 1, 2, 1: blocks 1 to 4; the downsampling layers feed blocks 2 and 4."""
    first, second = (0, 1) if downsample_at_end else (1, 2)
    return {
        f"{prefix}{stages}.0.blocks.0": 1,
        f"{prefix}{stages}.{first}.downsample": 2,
        f"{prefix}{stages}.1.blocks.0": 2,
        f"{prefix}{stages}.1.blocks.1": 3,
        f"{prefix}{stages}.{second}.downsample": 4,
        f"{prefix}{stages}.2.blocks.0": 4,
    }


def _convnext(stages, layers, downsample):
    """Depths 1, 2, 1, 1: blocks 1 to 5; the downsampling layers feed blocks 2, 4 and 5."""
    return {
        f"{stages}.0.{layers}.0": 1,
        f"{stages}.1.{downsample}": 2,
        f"{stages}.1.{layers}.0": 2,
        f"{stages}.1.{layers}.1": 3,
        f"{stages}.2.{downsample}": 4,
        f"{stages}.2.{layers}.0": 4,
        f"{stages}.3.{downsample}": 5,
        f"{stages}.3.{layers}.0": 5,
    }


_TIMM_VIT = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, **_blocks("blocks.{}"), "norm": 4, "head": 4}

# Parameter or module path -> index. Every parameter is under exactly one of them, and none of them is empty.
EXPECTED = {
    "vit": {"vit.embeddings": 0, **_blocks("vit.layers.{}"), "vit.layernorm": 4, "classifier": 4},
    "deit": {"deit.embeddings": 0, **_blocks("deit.layers.{}"), "deit.layernorm": 4, "classifier": 4},
    "deit_distilled": {
        "deit.embeddings": 0,
        **_blocks("deit.layers.{}"),
        "deit.layernorm": 4,
        "cls_classifier": 4,
        "distillation_classifier": 4,
    },
    "beit": {
        "beit.embeddings": 0,
        **_blocks("beit.layers.{}"),
        "beit.pooler.layernorm": 4,
        "classifier": 4,
    },
    "dinov2": {
        "dinov2.embeddings": 0,
        **_blocks("dinov2.encoder.layer.{}"),
        "dinov2.layernorm": 4,
        "classifier": 4,
    },
    "dinov2_registers": {
        "dinov2_with_registers.embeddings.register_tokens": 0,
        "dinov2_with_registers.embeddings.cls_token": 0,
        "dinov2_with_registers.embeddings.mask_token": 0,
        "dinov2_with_registers.embeddings.position_embeddings": 0,
        "dinov2_with_registers.embeddings.patch_embeddings": 0,
        **_blocks("dinov2_with_registers.encoder.layer.{}"),
        "dinov2_with_registers.layernorm": 4,
        "classifier": 4,
    },
    "swin": {
        "swin.embeddings": 0,
        **_swin("swin.encoder.", "layers", downsample_at_end=True),
        "swin.layernorm": 5,
        "classifier": 5,
    },
    "swinv2": {
        "swinv2.embeddings": 0,
        **_swin("swinv2.encoder.", "layers", downsample_at_end=True),
        "swinv2.layernorm": 5,
        "classifier": 5,
    },
    "convnext": {
        "convnext.embeddings": 0,
        **_convnext("convnext.encoder.stages", "layers", "downsampling_layer"),
        "convnext.layernorm": 6,
        "classifier": 6,
    },
    "convnextv2": {
        "convnextv2.embeddings": 0,
        **_convnext("convnextv2.encoder.stages", "layers", "downsampling_layer"),
        "convnextv2.layernorm": 6,
        "classifier": 6,
    },
    "resnet": {
        "resnet.embedder": 0,
        "resnet.encoder.stages.0.layers.0": 1,
        "resnet.encoder.stages.1.layers.0": 2,
        "resnet.encoder.stages.1.layers.1": 3,
        "resnet.encoder.stages.2.layers.0": 4,
        "resnet.encoder.stages.3.layers.0": 5,
        "classifier": 6,
    },
    "timm_vit": _TIMM_VIT,
    "timm_deit": _TIMM_VIT,
    "timm_deit_distilled": {**_TIMM_VIT, "dist_token": 0, "head_dist": 4},
    "timm_beit": {
        "cls_token": 0,
        "patch_embed": 0,
        **_blocks("blocks.{}"),
        "fc_norm": 4,
        "head": 4,
    },
    "timm_dinov2": _TIMM_VIT,
    "timm_dinov2_registers": {**_TIMM_VIT, "reg_token": 0},
    "timm_swin": {
        "patch_embed": 0,
        **_swin("", "layers", downsample_at_end=False),
        "norm": 5,
        "head": 5,
    },
    "timm_swinv2": {
        "patch_embed": 0,
        **_swin("", "layers", downsample_at_end=False),
        "norm": 5,
        "head": 5,
    },
    "timm_convnext": {"stem": 0, **_convnext("stages", "blocks", "downsample"), "head": 6},
    "timm_convnextv2": {"stem": 0, **_convnext("stages", "blocks", "downsample"), "head": 6},
    "timm_resnet": {
        "conv1": 0,
        "bn1": 0,
        "layer1.0": 1,
        "layer2.0": 2,
        "layer2.1": 3,
        "layer3.0": 4,
        "layer4.0": 5,
        "fc": 6,
    },
    "timm_wrapper_swin": {
        "timm_model.patch_embed": 0,
        **_swin("timm_model.", "layers", downsample_at_end=False),
        "timm_model.norm": 5,
        "timm_model.head": 5,
    },
    "hand_written": {"project": 0, **_blocks("body.{}"), "last_norm": 4, "out": 4},
}


def _expanded(expected, names):
    """Parameter name -> what `expected` says of the module that it is in."""
    values, used = {}, set()
    for name in names:
        paths = [path for path in expected if f"{name}.".startswith(f"{path}.")]
        assert len(paths) == 1, (name, paths)
        values[name] = expected[paths[0]]
        used.add(paths[0])
    assert used == expected.keys()
    return values


@pytest.fixture(scope="module")
def models():
    """The tiny models on the meta device: finding layers needs no weights."""
    with torch.device("meta"):
        return {name: build() for name, build in TINY_MODELS.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_single_stack_has_exactly_these_indices(models, name):
    layer_map = layer_index_map(models[name])
    names = [parameter_name for parameter_name, _ in models[name].named_parameters()]
    assert layers_of(layer_map) == _expanded(EXPECTED[name], names)
    assert list(layers_of(layer_map)) == names
    assert layer_map.num_layers == max(EXPECTED[name].values())
    assert layer_map.num_layers_by_stack == {"": layer_map.num_layers}
    assert stacks_of(layer_map) == dict.fromkeys(names, "")


@pytest.mark.parametrize("name", TINY_MODELS)
def test_blocks_run_in_the_order_of_their_indices(name):
    model = TINY_MODELS[name]().eval()
    layer_map = layer_index_map(model)
    blocks = {}
    for stack, index, reason in layer_map.places.values():
        if reason.startswith("block "):
            blocks[reason.removeprefix("block ")] = stack, index
    ran = {stack: [] for stack in layer_map.num_layers_by_stack}
    for path, (stack, index) in blocks.items():
        model.get_submodule(path).register_forward_hook(
            lambda *_, stack=stack, index=index: ran[stack].append(index)
        )
    with torch.no_grad():
        model(**tiny_inputs(name))
    for stack, n in layer_map.num_layers_by_stack.items():
        assert ran[stack] == list(range(1, n))


def _sizes(model):
    layer_map = layer_index_map(model)
    counts = [0] * (layer_map.num_layers + 1)
    for name, parameter in model.named_parameters():
        counts[layer_map.places[name].layer] += parameter.numel()
    return counts


# transformers adds a mask token to BEiT and DINOv2, the distillation token to DeiT, position embeddings to
# Swin (by its configuration), and its DINOv2 classifies the class token together with the mean patch.
@pytest.mark.parametrize(
    ("name", "same_ends"),
    [
        *[(name, True) for name in ("vit", "deit_distilled", "swinv2", "convnext", "convnextv2", "resnet")],
        *[(name, False) for name in ("deit", "beit", "dinov2", "dinov2_registers", "swin")],
    ],
)
def test_layers_have_the_same_size_in_both_libraries(models, name, same_ends):
    ours, theirs = _sizes(models[name]), _sizes(models[f"timm_{name}"])
    assert len(ours) == len(theirs)
    assert ours[1:-1] == theirs[1:-1]
    assert (ours == theirs) is same_ends


# timm gives the final norm of its plain stacks the last block's index.
@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("timm_")])
def test_agrees_with_timm(models, name):
    model = getattr(models[name], "timm_model", models[name])
    groups = group_parameters(model, model.group_matcher(coarse=False))
    theirs = {key: index for index, keys in groups.items() for key in keys}
    ours = layer_index_map(model)
    assert theirs.keys() == layers_of(ours).keys()
    assert max(theirs.values()) == ours.num_layers
    differing = {key for key, index in layers_of(ours).items() if theirs[key] != index}
    assert differing == ({"norm.weight", "norm.bias"} & theirs.keys())


def _renamed(module, classes_too=True):
    """The same network under other attribute and class names."""
    for name, child in list(module._modules.items()):
        if isinstance(child, nn.Module):
            _renamed(child, classes_too)
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                del module._modules[name]
                module._modules[f"x{len(name)}{name[::-1].replace('.', '')}"] = child
    if classes_too and type(module).__module__.startswith("transformers"):
        module.__class__ = type(f"X{id(type(module))}", (type(module),), {})
    return module


@pytest.mark.parametrize("name", ["vit", "dinov2", "beit"])
def test_renamed_containers_and_blocks_give_the_same_indices(name):
    with torch.device("meta"):
        plain, renamed = TINY_MODELS[name](), _renamed(TINY_MODELS[name]())
    expected, found = layer_index_map(plain), layer_index_map(renamed)
    assert list(layers_of(found).values()) == list(layers_of(expected).values())
    assert set(layers_of(found)).isdisjoint(layers_of(expected))


# Here the class alone tells what is a downsampling layer.
@pytest.mark.parametrize("name", ["swin", "swinv2", "timm_swin", "timm_vit", "t5", "gpt2", "bert"])
def test_renamed_attributes_give_the_same_indices(name):
    with torch.device("meta"):
        plain, renamed = TINY_MODELS[name](), _renamed(TINY_MODELS[name](), classes_too=False)
    expected, found = layer_index_map(plain), layer_index_map(renamed)
    assert list(layers_of(found).values()) == list(layers_of(expected).values())
    modules = {key for key in layers_of(found) if "." in key}
    assert modules
    assert modules.isdisjoint(layers_of(expected))


def test_reasons_name_the_block_and_what_surrounds_it(models):
    reasons = modules_of(layer_index_map(models["swin"]))
    assert reasons["swin.embeddings.norm.weight"] == "stem"
    assert reasons["swin.encoder.layers.0.blocks.0.mlp.fc1.weight"] == "block swin.encoder.layers.0.blocks.0"
    assert (
        reasons["swin.encoder.layers.0.downsample.reduction.weight"]
        == "feeds block swin.encoder.layers.1.blocks.0"
    )
    assert reasons["swin.layernorm.weight"] == "final norm"
    assert reasons["classifier.weight"] == "head"
    assert modules_of(layer_index_map(models["beit"]))["beit.pooler.layernorm.weight"] == "pooler"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.vit.layers.0.weight", "vit.layers.0.weight"),
        ("_orig_mod.module.vit.layers.0.weight", "vit.layers.0.weight"),
        ("module._orig_mod.head.bias", "head.bias"),
        ("timm_model.blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("layers.1._orig_mod.mlp.weight", "layers.1.mlp.weight"),
        ("layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.weight", "layers.1.mlp.weight"),
        ("encoder.module.weight", "encoder.module.weight"),
        ("submodule.weight", "submodule.weight"),
        ("base_model.layers.0.weight", "base_model.layers.0.weight"),
    ],
)
def test_unwrap_name(name, plain):
    assert unwrap_name(name) == plain


class _Wrapper(nn.Module):
    """A module that holds another under a given name, as DDP, `torch.compile` and PEFT do."""

    def __init__(self, path, module):
        super().__init__()
        first, _, rest = path.partition(".")
        self.add_module(first, _Wrapper(rest, module) if rest else module)


@pytest.mark.parametrize("prefix", ["module", "_orig_mod", "base_model.model", "module._orig_mod"])
@pytest.mark.parametrize("name", ["vit", "swin", "clip", "timm_wrapper_swin"])
def test_wrappers_change_nothing_but_the_names(models, name, prefix):
    plain, wrapped = layer_index_map(models[name]), layer_index_map(_Wrapper(prefix, models[name]))
    assert layers_of(wrapped) == {f"{prefix}.{k}": v for k, v in layers_of(plain).items()}
    assert stacks_of(wrapped) == {f"{prefix}.{k}": v for k, v in stacks_of(plain).items()}
    assert wrapped.num_layers_by_stack == plain.num_layers_by_stack


class _LoraLinear(nn.Module):
    """The module that PEFT puts in the place of a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})


class _ModulesToSave(nn.Module):
    def __init__(self, original):
        super().__init__()
        self.original_module = original
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(32, 3)})


def _with_lora(model):
    for module in list(model.modules()):
        if type(module).__name__.endswith(("Attention", "MLP")):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, _LoraLinear(child))
    model.classifier = _ModulesToSave(model.classifier)
    return _Wrapper("base_model.model", model)


def test_adapters_have_the_index_of_their_block():
    with torch.device("meta"):
        model = _with_lora(TINY_MODELS["vit"]())
    index = layers_of(layer_index_map(model))
    adapters = [name for name in index if "lora_" in name]
    assert len(adapters) == 3 * 6 * 2
    for name in adapters:
        assert index[name] == int(re.search(r"layers\.(\d+)", name)[1]) + 1
    assert index["base_model.model.classifier.modules_to_save.default.weight"] == 4
    assert index["base_model.model.classifier.original_module.weight"] == 4
    assert index["base_model.model.vit.embeddings.patch_embeddings.projection.weight"] == 0


def test_compiled_blocks_are_seen_through():
    model = HandWritten()
    expected = layers_of(layer_index_map(model))
    model.body = nn.ModuleList([_Wrapper("_orig_mod", block) for block in model.body])
    found = layers_of(layer_index_map(model))
    assert {unwrap_name(name): index for name, index in found.items()} == expected


class _Network(nn.Module):
    """Children in the order given."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def _indices(model):
    """Child path up to the block -> index, for comparison with a literal."""
    return {name.removesuffix(".weight"): i for name, i in layers_of(layer_index_map(model)).items()}


def _linear(count=1):
    layers = [nn.Linear(4, 4, bias=False) for _ in range(count)]
    return layers[0] if count == 1 else layers


def test_head_that_is_registered_first_is_the_head():
    model = _Network(head=_linear(), stem=_linear(), blocks=nn.ModuleList(_linear(2)))
    assert _indices(model) == {"head": 3, "stem": 0, "blocks.0": 1, "blocks.1": 2}


def test_embedding_that_is_registered_last_is_stem():
    model = _Network(
        blocks=nn.ModuleList(_linear(2)), embed=nn.Embedding(5, 4), norm=nn.LayerNorm(4, bias=False)
    )
    assert _indices(model) == {"blocks.0": 1, "blocks.1": 2, "embed": 0, "norm": 3}


def test_depth_of_one_is_enough():
    assert layer_index_map(HandWritten(depth=1)).num_layers == 2
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24)
    assert layer_index_map(swin).num_layers == 5


class _Mixture(nn.Module):
    """A block with experts, or without."""

    def __init__(self, experts):
        super().__init__()
        self.attention = ResidualBlock(8)
        self.experts = nn.ModuleList([ResidualBlock(8) for _ in range(experts)])


@pytest.mark.parametrize("experts", [(4, 4), (0, 4), (0, 4, 0, 4)])
def test_experts_belong_to_their_block(experts):
    layers = nn.ModuleList([_Mixture(count) for count in experts])
    model = _Network(stem=nn.Linear(4, 8), layers=layers, head=nn.Linear(8, 2))
    indices = layers_of(layer_index_map(model))
    expected = {f"layers.{i}": i + 1 for i in range(len(experts))}
    assert indices == _expanded({"stem": 0, **expected, "head": len(experts) + 1}, indices)


def test_stage_lists_side_by_side():
    """The layout of SegFormer and PVT: patch embeddings, blocks and norms in one list each, one a stage."""
    widths = (4, 8, 12)
    model = _Network(
        patch_embeddings=nn.ModuleList([nn.Linear(4, width, bias=False) for width in widths]),
        block=nn.ModuleList([nn.ModuleList([ResidualBlock(width) for _ in range(2)]) for width in widths]),
        layer_norm=nn.ModuleList([nn.LayerNorm(width, bias=False) for width in widths]),
        classifier=nn.Linear(12, 2, bias=False),
    )
    indices = layers_of(layer_index_map(model))
    expected = {
        **{f"patch_embeddings.{i}": index for i, index in enumerate((0, 3, 5))},
        **{f"block.{i}.{j}": 1 + 2 * i + j for i in range(3) for j in range(2)},
        **{f"layer_norm.{i}": index for i, index in enumerate((2, 4, 7))},
        "classifier": 7,
    }
    assert indices == _expanded(expected, indices)


def test_numbered_attributes_are_a_list():
    blocks = {f"block{i}": ResidualBlock(8) for i in range(1, 4)}
    model = _Network(conv=nn.Linear(4, 8), **blocks, fc=nn.Linear(8, 2))
    indices = layers_of(layer_index_map(model))
    assert indices == _expanded({"conv": 0, "block1": 1, "block2": 2, "block3": 3, "fc": 4}, indices)


def test_plain_chain_of_layers():
    model = nn.Sequential(OrderedDict(a=_linear(), b=nn.ReLU(), c=_linear(), d=nn.ReLU(), e=_linear()))
    assert _indices(model) == {"a": 0, "c": 1, "e": 2}


def test_sequential_around_a_backbone():
    model = nn.Sequential(HandWritten(), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    indices = layers_of(layer_index_map(model))
    expected = {
        "0.project": 0,
        "0.body.0": 1,
        "0.body.1": 2,
        "0.body.2": 3,
        "0.last_norm": 4,
        "0.out": 4,
        "1": 4,
    }
    assert indices == _expanded(expected, indices)


def test_backbone_in_a_module_that_is_called_as_a_stem():
    model = _Network(embedder=HandWritten(), classifier=nn.Linear(3, 3))
    assert layers_of(layer_index_map(model))["embedder.body.2.up.weight"] == 3


def test_system_is_no_stem():
    model = _Network(stem=nn.Linear(4, 8), system=nn.ModuleList([ResidualBlock(8) for _ in range(2)]))
    assert layers_of(layer_index_map(model))["system.1.up.weight"] == 2


def test_partitioned_weights_have_their_full_shape():
    for name in ("hand_written", "convnextv2", "swinv2", "clip"):
        whole, parts = (TINY_MODELS[name]() for _ in range(2))
        assert layer_index_map(partitioned(parts)) == layer_index_map(whole)
        assert exemptions(parts) == exemptions(whole)


def test_flattened_weights_are_refused():
    model = HandWritten()
    model.out.weight._fsdp_flattened = True
    with pytest.raises(ValueError, match="FSDP1 has flattened the parameters"):
        layer_index_map(model)


def test_torch_transformer_has_two_stacks():
    model = nn.Transformer(
        8, 2, num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=8, batch_first=True
    )
    layer_map = layer_index_map(model)
    assert layer_map.num_layers_by_stack == {"encoder": 3, "decoder": 4}
    assert layers_of(layer_map)["decoder.layers.2.linear1.weight"] == 3


def test_tied_parameter_has_its_first_index():
    model = HandWritten(width=4)
    model.out.weight = nn.Parameter(torch.zeros(4, 4))
    model.project.weight = model.out.weight
    index = layers_of(layer_index_map(model))
    assert index["project.weight"] == 0
    assert "out.weight" not in index


def test_head_that_is_registered_before_the_embedding_it_is_tied_to():
    model = _Network(out=nn.Linear(4, 8, bias=False), stem=nn.Linear(4, 8), body=HandWritten().body)
    model.stem.weight = model.out.weight
    layer_map = layer_index_map(model)
    assert layers_of(layer_map)["out.weight"] == 0
    model = _Network(head=nn.Linear(4, 8, bias=False), stem=nn.Linear(4, 8), body=HandWritten().body)
    assert layers_of(layer_index_map(model))["head.weight"] == 4
    model.stem.weight = model.head.weight
    layer_map = layer_index_map(model)
    assert layers_of(layer_map)["head.weight"] == 0
    assert modules_of(layer_map)["head.weight"] == "stem"


def test_model_without_repeated_blocks_is_refused():
    model = _Network(up=nn.Linear(4, 8), down=nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"_Network has no repeated stack of blocks .*: give a layer_map"):
        layer_index_map(model)
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        layer_index_map(nn.ReLU())


RULES = {r"project\..*": "stem", r"body\.(\d+)\..*": "block", r"(last_norm|out)\..*": "head"}


def test_rules_number_blocks_as_integers():
    model = HandWritten(depth=12)
    by_rules, found = layer_index_map(model, RULES), layer_index_map(model)
    assert layers_of(by_rules) == layers_of(found)
    assert by_rules.num_layers_by_stack == {"": 13}
    assert layers_of(by_rules)["body.10.up.weight"] == 11
    assert modules_of(by_rules)["body.10.up.weight"] == r"rule 'body\\.(\\d+)\\..*'"


def test_rules_match_names_without_wrappers():
    model = _Wrapper("module", HandWritten())
    expected = {f"module.{k}": v for k, v in layers_of(layer_index_map(HandWritten())).items()}
    assert layers_of(layer_index_map(model, RULES)) == expected


def test_rules_of_several_captured_numbers_sort_by_all():
    with torch.device("meta"):
        model = TINY_MODELS["timm_swin"]()
    rules = {r"patch_embed\..*": "stem", r"layers\.(\d+)\.blocks\.(\d+)\..*": "block"}
    rules |= {r"layers\.1\.downsample\..*": 2, r"layers\.2\.downsample\..*": 4, ".*": "head"}
    assert layers_of(layer_index_map(model, rules)) == layers_of(layer_index_map(model))


def test_exact_name_goes_before_an_expression_and_the_first_expression_wins():
    rules = {".*bias": "head", r"body\.(\d+)\..*": "block", ".*": "stem", "body.0.up.weight": "head"}
    index = layers_of(layer_index_map(HandWritten(), rules))
    assert index["body.0.up.weight"] == 4
    assert index["body.0.up.bias"] == 4
    assert index["body.0.down.weight"] == 1
    assert index["out.weight"] == 0


@pytest.mark.parametrize(
    ("rules", "n"),
    [
        ({"project.*": 0, "body.*": 1, ".*": 2}, 2),
        ({"project.*": "stem", "body.*": 1, ".*": "head"}, 2),
        ({"project.*": "stem", r"body\.(\d+)\..*": "block", ".*": 4}, 4),
    ],
)
def test_number_of_layers_follows_from_the_rules(rules, n):
    layer_map = layer_index_map(HandWritten(), rules)
    assert layer_map.num_layers == n
    assert layers_of(layer_map)["out.weight"] == n


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"project.*": "stem", "body.*": 1}, "no rule for parameter 'last_norm.weight'"),
        ({"nothing": 0, ".*": "head"}, "'nothing' matches no parameter"),
        ({"body": 0, ".*": "head"}, "'body' matches no parameter; it has to match a whole name"),
        ({".*": -1}, r"layer_map\['\.\*'\] is -1"),
        ({r"body\.(\d+)\..*": "block", ".*": 5}, r"layer_map\['\.\*'\] is 5, but an index must be 0 .* to 4"),
        (
            {".*": "tail"},
            r"layer_map\['\.\*'\] is 'tail': it must be an index >= 0, 'stem', 'block' or 'head'",
        ),
        ({".*": True}, "is True: it must be an index"),
        ({".*": 1.0}, "is 1.0: it must be an index >= 0"),
        ({".*": "stem"}, "gives every parameter index 0"),
        ({"body.*": "block", ".*": "head"}, "its groups have to capture the block's number"),
        ({r"body\.\d+\.(\w+).*": "block", ".*": "head"}, r"in 'body.0.norm.weight' they capture \('norm',\)"),
        ({"bo(dy": 0, ".*": "head"}, r"'bo\(dy' is not a regular expression"),
    ],
)
def test_wrong_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        layer_index_map(HandWritten(), rules)


def test_parameters_without_a_shape_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"^2\.weight has no shape yet: run a forward pass first$"):
        layer_index_map(model)


def test_given_map_is_checked():
    model = HandWritten()
    layer_map = layer_index_map(model)
    assert layer_index_map(model, layer_map) is layer_map
    with pytest.raises(ValueError, match=r"has no parameter 'body.3.norm.weight'"):
        layer_index_map(HandWritten(depth=4), layer_map)
    wrong = LayerMap({**layer_map.places, "out.bias": Place("", 5, "mine")}, {"": 4})
    with pytest.raises(
        ValueError, match=r"puts 'out\.bias' at index 5 of stack '', but its num_layers_by_stack is {'': 4}"
    ):
        layer_index_map(model, wrong)
    wrong = LayerMap(layer_map.places, {"text": 4})
    with pytest.raises(ValueError, match="of stack '', but its num_layers_by_stack is "):
        layer_index_map(model, wrong)
