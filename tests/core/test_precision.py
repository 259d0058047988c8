"""bfloat16 and float16 weights: decay that one step would round to nothing is added up, and comes in time."""

import copy
import io
import math
import warnings

import pytest
import torch
from small_optimizers import assert_same
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_lpwd.low_precision import mean_portion, rounds_to_nothing
from hf_lpwd.optimizer import LayerwiseDecay

pytestmark = pytest.mark.filterwarnings("ignore:in the precision of the weights:UserWarning")

LOW = [torch.bfloat16, torch.float16]
DECAYING = ["wd", "rwd", "pwd"]
BASES = [
    (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.AdamW, {"foreach": True, "eps": 1e-3}),
    (torch.optim.Adafactor, {}),
]
STEPS = 2000


def all_significands(dtype):
    """Every value of three octaves below 2 that `dtype` can hold, and their negatives."""
    octave = torch.arange(1, 2, torch.finfo(dtype).eps, dtype=torch.float64)
    values = torch.cat([octave, octave / 2, octave / 4])
    return torch.cat([values, -values]).to(dtype).reshape(-1, 4)


def warmup_cosine(step):
    return min(step / 200, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def make(start, timing="pwd", optimizer_cls=torch.optim.SGD, weight_decay=0.25, **kwargs):
    weight = nn.Parameter(start.clone())
    return weight, LayerwiseDecay(
        [weight], optimizer_cls, decay_timing=timing, weight_decay=weight_decay, **{"lr": 2.0**-8, **kwargs}
    )


def make_step(optimizer, gradient=torch.zeros_like):
    optimizer.train()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = gradient(parameter)
    optimizer.step()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("timing", DECAYING)
@pytest.mark.parametrize(("optimizer_cls", "kwargs"), BASES)
def test_decay_follows_the_float64_reference(optimizer_cls, kwargs, timing, dtype):
    """Over 2000 steps with warm-up and cosine, each of which would round to nothing."""
    peak = mean_portion(dtype) / 16
    assert rounds_to_nothing(peak, dtype)
    start = all_significands(dtype)
    weight, optimizer = make(start, timing, optimizer_cls, lr=peak / 0.25, **kwargs)
    scheduler = LambdaLR(optimizer, warmup_cosine)
    reference = 0.0
    for _ in range(STEPS):
        reference += math.log1p(-optimizer.param_groups[0]["lr"] * 0.25)
        make_step(optimizer)
        scheduler.step()
    error = (weight.detach().double() / start.double()).log() - reference
    assert abs(reference) > 50 * mean_portion(dtype)
    owed = optimizer.param_groups[0]["decay_debt"]
    assert 0.0 < owed < 1.25 * mean_portion(dtype)
    error -= owed
    assert error.mean().abs() < 0.015 * abs(reference)
    assert error.abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("timing", DECAYING)
def test_decay_among_updates_follows_the_float64_reference(timing):
    """Noisy gradients, updates of about one unit in the last place: the mean weight decays as it has to."""
    start = torch.full((64, 64), 1.5)
    low, optimizer = make(start.bfloat16(), timing)
    high, exact = make(start.double(), timing)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS // 2):
        gradient = torch.randn(64, 64, generator=generator).bfloat16()
        for each in (optimizer, exact):
            make_step(each, lambda parameter, gradient=gradient: gradient.to(parameter.dtype))
    owed = optimizer.param_groups[0]["decay_debt"]
    decay = (high.detach().mean() / 1.5).log().item()
    assert decay == pytest.approx(-1000 * 2.0**-10, abs=0.02)
    assert (low.detach().double().mean() / 1.5).log().item() - owed == pytest.approx(decay, abs=0.02)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("timing", DECAYING)
def test_decay_large_enough_comes_in_every_step(timing, dtype):
    start = all_significands(dtype)
    weight, optimizer = make(start, timing, lr=0.25)
    expected = start.clone()
    for _ in range(5):
        make_step(optimizer)
        expected *= 1 - 0.25 * 0.25
        assert torch.equal(weight.detach(), expected)
        assert optimizer.param_groups[0]["decay_debt"] == 0.0


@pytest.mark.parametrize("timing", DECAYING)
def test_it_comes_at_once_when_it_has_added_up(timing):
    """The first portion is 3/4 of 2^-6, 12 steps of 2^-10 less the interest; the second 1.06 of it."""
    weight, optimizer = make(torch.ones(4, dtype=torch.bfloat16), timing)
    moved = []
    for _ in range(40):
        before = weight.detach().clone()
        make_step(optimizer)
        moved.append(not torch.equal(weight.detach(), before))
    assert [step for step, moves in enumerate(moved, start=1) if moves] == [13, 31]


@pytest.mark.parametrize("optimizer_cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor])
@pytest.mark.parametrize("timing", DECAYING)
def test_checkpoints_keep_what_is_owed(timing, optimizer_cls):
    kwargs = {"lr": 1e-3, "optimizer_cls": optimizer_cls}
    weight, optimizer = make(all_significands(torch.bfloat16), timing, **kwargs)

    def steps(weight, optimizer, count):
        for _ in range(count):
            make_step(optimizer, lambda parameter: 0.01 * parameter)

    steps(weight, optimizer, 100)
    buffer = io.BytesIO()
    torch.save({"weight": weight.detach(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["decay_debt"] > 0.0
    resumed_weight, resumed = make(saved["weight"], timing, **kwargs)
    resumed.load_state_dict(saved["optimizer"])
    copied_weight, copied = copy.deepcopy((weight, optimizer))
    for each in ((weight, optimizer), (resumed_weight, resumed), (copied_weight, copied)):
        steps(*each, 100)
    assert_same([resumed_weight, copied_weight], [weight, weight])
    owed = optimizer.param_groups[0]["decay_debt"]
    assert resumed.param_groups[0]["decay_debt"] == copied.param_groups[0]["decay_debt"] == owed


@pytest.mark.parametrize("timing", DECAYING)
def test_float32_beside_bfloat16_decays_in_every_step(timing):
    full = nn.Parameter(torch.linspace(-1, 1, 5))
    half = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.bfloat16))
    before = [full.detach().clone(), half.detach().clone()]
    optimizer = LayerwiseDecay([full, half], decay_timing=timing, weight_decay=0.25, lr=2.0**-10)
    for step in range(1, 4):
        make_step(optimizer)
        expected = before[0].double() * (1 - 2.0**-12) ** step
        torch.testing.assert_close(full.detach(), expected.float(), rtol=1e-6, atol=0)
        assert torch.equal(half.detach(), before[1])
    assert optimizer.param_groups[0]["decay_debt"] == pytest.approx(3 * 2.0**-12, rel=1e-3)


def test_micro_batches_and_skipped_steps_owe_once():
    weight, optimizer = make(torch.ones(4, dtype=torch.bfloat16))
    for _ in range(4):
        optimizer.train()
    once = -math.log1p(-(2.0**-10))
    assert optimizer.param_groups[0]["decay_debt"] == once
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert optimizer.param_groups[0]["decay_debt"] == once


@pytest.mark.parametrize("timing", ["wd", "rwd"])
def test_without_gradients_nothing_is_owed(timing):
    _, optimizer = make(torch.ones(4, dtype=torch.bfloat16), timing)
    optimizer.step()
    assert optimizer.param_groups[0]["decay_debt"] == 0.0


def test_l2_owes_nothing():
    weight, optimizer = make(torch.ones(4, dtype=torch.bfloat16), "l2", lr=0.125)
    make_step(optimizer)
    assert torch.equal(weight.detach(), torch.full((4,), 1 - 0.125 * 0.25, dtype=torch.bfloat16))
    assert optimizer.param_groups[0]["decay_debt"] == 0.0


def half_groups(*rates):
    return [
        {"params": [nn.Parameter(torch.ones(2, dtype=dtype))], "weight_decay": rate} for rate, dtype in rates
    ]


def test_one_warning_names_the_rates_and_how_often_they_are_applied():
    groups = half_groups(
        (0.0, torch.bfloat16), (0.1, torch.bfloat16), (0.01, torch.float16), (0.15, torch.float32)
    )
    with pytest.warns(UserWarning, match="rounds to 1") as caught:
        LayerwiseDecay([*groups, *half_groups((0.4, torch.bfloat16))], lr=1e-2)
    (warning,) = caught
    assert warning.filename == __file__
    named = "applied once in about so many steps: 0.01 (float16, 20 steps), 0.1 (bfloat16, 16 steps). Float32"
    assert named in str(warning.message)


def test_a_group_that_is_added_is_named_too():
    _, optimizer = make(torch.ones(2))
    with pytest.warns(UserWarning, match=r"about so many steps: 0\.1 \(bfloat16, 41 steps\)"):
        optimizer.add_param_group(half_groups((0.1, torch.bfloat16))[0])


def test_no_warning_where_deepspeed_decays_float32_copies():
    groups = half_groups((0.1, torch.bfloat16))
    groups[0]["params"][0].ds_shape = (2,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerwiseDecay(groups, lr=1e-2)


def test_no_warning_where_only_the_warm_up_is_too_slow():
    """The rates are judged at the learning rate that the schedule leads up to."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, optimizer = make(torch.ones(4, dtype=torch.bfloat16), lr=0.125)
        scheduler = LambdaLR(optimizer, lambda step: step / 100)
        for _ in range(20):
            make_step(optimizer)
            scheduler.step()
    # 1/32 * (0 + 1 + ... + 19) / 100 = 0.059: three portions of 1/64 or a little more.
    assert weight.detach().double().log().sum() / 4 == pytest.approx(-0.059, abs=2.0**-6)


def test_rounds_to_nothing_at_the_edges():
    assert not rounds_to_nothing(1.0, torch.bfloat16)
    assert rounds_to_nothing(1e-20, torch.float64)
