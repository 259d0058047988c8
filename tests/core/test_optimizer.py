"""`LayerwiseDecay`: when it decays, and equality with torch's own decay."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from small_optimizers import (
    SETTINGS,
    TIMINGS,
    assert_same,
    loss_of,
    make,
    make_groups,
    make_model,
    shrunk,
    train_steps,
    weights,
)

from hf_lpwd.optimizer import LayerwiseDecay


def test_pwd_decays_in_train_once_for_each_step():
    model, optimizer = make()
    before = weights(model)
    optimizer.train()
    optimizer.train()
    optimizer.eval()
    optimizer.train()
    assert shrunk(model, before, (0.05 * 0.1, 0.05 * 0.5))
    loss_of(model, 0).backward()
    optimizer.step()
    at_rest = weights(model)
    optimizer.eval()
    assert_same(weights(model), at_rest)
    optimizer.train()
    assert shrunk(model, at_rest, (0.05 * 0.1, 0.05 * 0.5))


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd"])
def test_train_leaves_the_weights_alone_under_other_timings(timing):
    model, optimizer = make(timing)
    before = weights(model)
    optimizer.train()
    assert_same(weights(model), before)


def test_pwd_without_train_is_an_error_and_changes_nothing():
    model, optimizer = make()
    loss_of(model, 0).backward()
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\) was not called since the last step"):
        optimizer.step()
    assert_same(weights(model), before)
    train_steps(model, optimizer, [0])
    with pytest.raises(RuntimeError, match="not called since the last step"):
        optimizer.step()


def test_accumulation_with_a_partial_last_window_decays_once_a_window():
    model, optimizer = make()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer = accelerator.prepare(model, optimizer)
    decays = []
    for micro_batch in range(6):
        before = weights(model)
        optimizer.train()
        decays.append(not torch.equal(weights(model)[0], before[0]))
        accelerator.gradient_state._set_sync_gradients(micro_batch in (3, 5))
        accelerator.backward(loss_of(model, micro_batch))
        optimizer.step()
        optimizer.zero_grad()
    assert decays == [True, False, False, False, True, False]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_a_scaler_decays_once(fused):
    model, optimizer = make(fused=fused)
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerated = AcceleratedOptimizer(optimizer, scaler=scaler)
    before = weights(model)
    skipped = []
    for step, poison in enumerate([math.inf, math.nan, 1.0]):
        accelerated.train()
        if step == 0:
            decayed = weights(model)
            assert shrunk(model, before, (0.05 * 0.1, 0.05 * 0.5))
        if step < 3:
            assert_same(weights(model), decayed)
        scaler.scale(loss_of(model, 0) * poison).backward()
        accelerated.step()
        accelerated.zero_grad()
        skipped.append(accelerated.step_was_skipped)
    assert skipped == [True, True, False]
    other, plain = make(fused=fused)
    train_steps(other, plain, [0])
    for a, b in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("timing", TIMINGS)
def test_a_parameter_without_gradient_is_left_alone_but_by_pwd(timing):
    model, optimizer = make(timing)
    before = weights(model)
    optimizer.train()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    optimizer.step()
    assert torch.equal(model[0].weight, before[0] * (1 - 0.005) if timing == "pwd" else before[0])


def test_pwd_leaves_a_parameter_alone_that_was_frozen_later():
    model, optimizer = make()
    before = weights(model)
    model[0].weight.requires_grad_(False)
    optimizer.train()
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(model[0].bias, before[1] * (1 - 0.005))


@pytest.mark.parametrize("timing", ["wd", "rwd", "pwd"])
def test_a_schedule_may_change_the_rate(timing):
    model, optimizer = make(timing, optimizer_cls=torch.optim.SGD)
    train_steps(model, optimizer, [0])
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = weights(model)
    optimizer.train()
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters()]
    expected = before[0] - 0.05 * gradients[0]
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-15, atol=0)
    assert not torch.equal(model[2].weight.detach(), before[2] - 0.05 * gradients[2])


@pytest.mark.parametrize("kwargs", [{}, {"fused": True}, {"foreach": True}, {"amsgrad": True}])
@pytest.mark.parametrize(
    ("timing", "own_cls"), [("wd", torch.optim.AdamW), ("l2", torch.optim.Adam)], ids=["wd", "l2"]
)
@pytest.mark.parametrize("wrapped_cls", [torch.optim.Adam, torch.optim.AdamW])
def test_wd_is_adamw_and_l2_is_adam_bit_for_bit(wrapped_cls, timing, own_cls, kwargs):
    model, optimizer = make(timing, optimizer_cls=wrapped_cls, **kwargs)
    other = make_model()
    own = own_cls(make_groups(other), lr=0.05, **kwargs)
    train_steps(model, optimizer, range(10))
    train_steps(other, own, range(10))
    assert_same(weights(model), weights(other))


@pytest.mark.parametrize(
    ("timing", "optimizer_cls"),
    [("l2", torch.optim.SGD), ("l2", torch.optim.RMSprop), ("wd", torch.optim.Adafactor)],
)
def test_other_optimizers_own_decay_bit_for_bit(timing, optimizer_cls):
    model, optimizer = make(timing, optimizer_cls=optimizer_cls)
    other = make_model()
    own = optimizer_cls(make_groups(other), lr=0.05)
    train_steps(model, optimizer, range(10))
    train_steps(other, own, range(10))
    assert_same(weights(model), weights(other))


@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
def test_without_decay_it_is_the_base_optimizer_bit_for_bit(timing, coupling, optimizer_cls):
    model, other = make_model(), make_model()
    optimizer = LayerwiseDecay(
        model.parameters(), optimizer_cls, decay_timing=timing, decay_coupling=coupling, lr=0.05
    )
    base = optimizer_cls(other.parameters(), lr=0.05, weight_decay=0.0)
    train_steps(model, optimizer, range(10))
    train_steps(other, base, range(10))
    assert_same(weights(model), weights(other))


def test_gradients_are_restored_when_the_step_fails():
    class OfSomeone(torch.optim.SparseAdam):
        """Not torch's own class, so that what it takes is not known beforehand."""

    model, optimizer = make("l2", optimizer_cls=OfSomeone)
    loss_of(model, 0).backward()
    before, gradients = weights(model), [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert_same([p.grad for p in model.parameters()], gradients)
    assert_same(weights(model), before)
