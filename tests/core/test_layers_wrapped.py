"""Models inside of PEFT, `torch.compile`, DDP and FSDP2: the layers, and the rates, of the model inside."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from layer_columns import layers_of, modules_of
from peft import LoraConfig, get_peft_model
from small_trainers import Images, lpwd_args, make_model, weights
from tiny_models import TINY_MODELS, HandWritten
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.layers import layer_index_map
from hf_lpwd.parameters import unwrap_name
from hf_lpwd.trainer import LPWDTrainer

# PEFT asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = {"lr": 0.01, "weight_decay": 0.4}


def _rates(model):
    """Unwrapped parameter name -> rate in the optimizer."""
    optimizer = create_lpwd_optimizer(model, **SETTINGS)
    return {
        unwrap_name(name): group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def _assert_map_of(wrapped, model):
    found, expected = layer_index_map(wrapped), layer_index_map(model)
    assert {unwrap_name(name): place[:2] for name, place in found.places.items()} == {
        unwrap_name(name): place[:2] for name, place in expected.places.items()
    }
    assert found.num_layers_by_stack == expected.num_layers_by_stack
    assert _rates(wrapped) == _rates(model)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A gloo group of one process."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    assert dist.get_world_size() == 1
    yield
    dist.destroy_process_group()


WRAPPED = ["vit", "swin", "clip", "t5", "timm_vit", "timm_wrapper_swin", "hand_written"]


@pytest.mark.parametrize("name", WRAPPED)
def test_compiled(name):
    model = TINY_MODELS[name]()
    _assert_map_of(torch.compile(model, backend="eager"), model)


def test_compiled_block_by_block():
    model, whole = TINY_MODELS["vit"](), TINY_MODELS["vit"]()
    for i, block in enumerate(model.vit.layers):
        model.vit.layers[i] = torch.compile(block, backend="eager")
    _assert_map_of(model, whole)


@pytest.mark.parametrize("name", WRAPPED)
def test_distributed_data_parallel(name, one_process):
    model = TINY_MODELS[name]()
    _assert_map_of(DistributedDataParallel(model), model)
    _assert_map_of(torch.compile(DistributedDataParallel(model), backend="eager"), model)


@pytest.mark.parametrize("name", WRAPPED)
def test_fully_sharded(name, one_process):
    torch.manual_seed(0)
    whole = TINY_MODELS[name]()
    torch.manual_seed(0)
    model = TINY_MODELS[name]()
    mesh = init_device_mesh("cpu", (1,))
    for path in {
        reason.removeprefix("block ")
        for reason in modules_of(layer_index_map(model)).values()
        if reason.startswith("block ")
    }:
        fully_shard(model.get_submodule(path), mesh=mesh)
    # FSDP2 takes no scalars, such as CLIP's logit_scale.
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    assert all(hasattr(p, "full_tensor") is (p not in scalars) for p in model.parameters())
    _assert_map_of(model, whole)


def test_wrapped_models_train_as_the_model_inside(one_process):
    def train(wrap):
        torch.manual_seed(0)
        model = HandWritten()
        wrapped = wrap(model)
        optimizer = create_lpwd_optimizer(wrapped, **SETTINGS)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            optimizer.train()
            optimizer.zero_grad()
            wrapped(torch.randn(4, 4, generator=generator)).square().mean().backward()
            optimizer.step()
        return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]

    plain = train(lambda model: model)
    mesh = init_device_mesh("cpu", (1,))
    for wrap in (
        lambda model: torch.compile(model, backend="eager"),
        DistributedDataParallel,
        lambda model: fully_shard(model, mesh=mesh),
    ):
        for one, other in zip(plain, train(wrap), strict=True):
            assert torch.equal(one, other)


def _with_lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"], modules_to_save=["classifier"])
    return get_peft_model(model, config)


def test_lora_has_the_map_of_the_model_inside_and_trains_what_is_trainable():
    plain = layers_of(layer_index_map(make_model()))
    model = _with_lora(make_model())
    layer_map = layer_index_map(model)
    assert layer_map.num_layers_by_stack == {"": 3}
    adapters = [name for name in layers_of(layer_map) if "lora_" in name]
    assert len(adapters) == 2 * 3 * 2
    for name, index in layers_of(layer_map).items():
        inside = unwrap_name(name).replace("base_layer.", "").replace("original_module.", "")
        if name in adapters:
            inside = f"{inside[: inside.index('.lora_')]}.weight"
        assert index == plain[inside], name

    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = "base_model.model.classifier.modules_to_save.default"
    assert trainable == {*adapters, f"{head}.weight", f"{head}.bias"}
    optimizer = create_lpwd_optimizer(model, **SETTINGS)
    rates = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert rates.keys() == trainable
    for name, rate in rates.items():
        index = 0 if name.endswith("bias") else layer_map.places[name].layer
        assert rate == pytest.approx(0.4 * index / 3, rel=1e-15)


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
def test_lora_is_trained_and_the_rest_is_not(timing):
    model = _with_lora(make_model())
    before = weights(model)
    optimizer = create_lpwd_optimizer(model, decay_timing=timing, **SETTINGS)
    batch = [Images()[i] for i in range(4)]
    images = torch.stack([sample["pixel_values"] for sample in batch])
    for _ in range(2):
        optimizer.train()
        optimizer.zero_grad()
        model(pixel_values=images, labels=torch.tensor([s["labels"] for s in batch])).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


def test_the_trainer_trains_lora(tmp_path):
    model = _with_lora(make_model())
    before = weights(model)
    trainer = LPWDTrainer(model, lpwd_args(tmp_path, max_steps=3), train_dataset=Images())
    trainer.train()
    assert list(trainer.layer_plan.rates) == [""]
    assert len(trainer.layer_plan.rates[""]) == 4
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for g in trainer.optimizer.param_groups for name in g["param_names"]} == trainable
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == trainable
