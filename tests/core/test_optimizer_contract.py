"""`LayerwiseDecay` does what any torch optimizer does."""

import pytest
import torch
from small_optimizers import SETTINGS, TIMINGS, assert_same, loss_of, make, make_model, train_steps, weights
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from transformers.optimization import Adafactor as TransformersAdafactor


def test_it_is_an_optimizer_with_the_state_and_groups_of_its_base():
    _, optimizer = make(betas=(0.8, 0.9))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def test_repr_is_one_line():
    _, optimizer = make(betas=(0.8, 0.9))
    assert repr(optimizer) == (
        "LayerwiseDecay(AdamW, pwd, coupling lr: lr 0.05, weight_decay 0.1 to 0.5, 2 groups)"
    )
    optimizer.param_groups[0].update(lr=torch.tensor(0.0125), weight_decay=0.5)
    assert "lr 0.0125 to 0.05, weight_decay 0.5, 2 groups" in repr(optimizer)
    _, optimizer = make("l2", optimizer_cls=TransformersAdafactor, lr=None, relative_step=True)
    assert "lr None," in repr(optimizer)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    model, optimizer = make()
    loss_of(model, 0).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    for p in model.parameters():
        assert p.grad is None if set_to_none else not p.grad.any()


def test_state_dict_hooks_may_replace_the_state_dict():
    _, optimizer = make()
    optimizer.register_state_dict_post_hook(lambda opt, saved: {**saved, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda opt, saved: {key: value for key, value in saved.items() if key != "extra"}
    )
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert saved["extra"] == 1


@pytest.mark.parametrize("timing", TIMINGS)
def test_add_param_group(timing):
    _, optimizer = make(timing, optimizer_cls=torch.optim.SGD)
    added = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [added], "param_names": ["added"], "weight_decay": 0.2})
    assert optimizer.param_groups[2]["decay_timing"] == timing
    optimizer.train()
    added.grad = torch.zeros_like(added)
    optimizer.step()
    torch.testing.assert_close(added.detach(), torch.full_like(added, 0.99), rtol=1e-15, atol=0)


def test_a_bad_group_is_not_added():
    model, optimizer = make()
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model[0].weight], "param_names": ["again"]})
    with pytest.raises(ValueError, match=r"weight_decay is -1\.0"):
        optimizer.add_param_group({"params": [weight], "weight_decay": -1})
    with pytest.raises(ValueError, match=r"lr \* weight_decay = 0\.05 \* 20\.0"):
        optimizer.add_param_group({"params": [weight], "weight_decay": 20})
    with pytest.raises(TypeError, match="must be a dict, not a list"):
        optimizer.add_param_group([weight])
    assert len(optimizer.param_groups) == 2


def test_one_cycle_and_plateau():
    model, optimizer = make()
    scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=8)
    for step in range(7):
        train_steps(model, optimizer, [step])
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.base.param_groups[0]["lr"] < 1e-5
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.95)
    model, optimizer = make()
    plateau = ReduceLROnPlateau(optimizer, patience=0)
    for metric in (1.0, 2.0):
        plateau.step(metric)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.005)


def test_swapped_parameters_are_followed():
    """As accelerate does with FSDP2, which puts other tensors into the groups."""
    model, optimizer = make()
    other = make_model()
    for group, layer in zip(optimizer.param_groups, (other[0], other[2]), strict=True):
        group["params"] = list(layer.parameters())
    model, plain = make()
    train_steps(other, optimizer, range(3))
    train_steps(model, plain, range(3))
    assert_same(weights(model), weights(other))


@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
@pytest.mark.parametrize("kwargs", [{}, {"fused": True}])
def test_tensor_learning_rate(timing, coupling, kwargs):
    model, optimizer = make(timing, coupling, lr=torch.tensor(0.05, dtype=torch.float64), **kwargs)
    lr = optimizer.param_groups[0]["lr"]
    other, plain = make(timing, coupling, **kwargs)
    train_steps(model, optimizer, range(5))
    train_steps(other, plain, range(5))
    assert optimizer.param_groups[0]["lr"] is lr
    for a, b in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
