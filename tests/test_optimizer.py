"""`LayerwiseDecay` as a torch optimizer: when it decays, checkpoints, hooks, schedulers, refusals."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from hf_lpwd.optimizer import LayerwiseDecay

TIMINGS = ("l2", "wd", "rwd", "pwd")
SETTINGS = [("l2", "lr")] + [(t, c) for t in ("wd", "rwd", "pwd") for c in ("lr", "independent")]


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def make_groups(model, rates=(0.1, 0.5)):
    return [
        {
            "params": list(layer.parameters()),
            "param_names": [f"{name}.weight", f"{name}.bias"],
            "weight_decay": rate,
        }
        for name, layer, rate in zip(("0", "2"), (model[0], model[2]), rates, strict=True)
    ]


def make(timing="pwd", coupling="lr", optimizer_cls=torch.optim.AdamW, model=None, **kwargs):
    model = make_model() if model is None else model
    kwargs = {"lr": 0.05, **kwargs}
    return model, LayerwiseDecay(
        make_groups(model), optimizer_cls, timing=timing, coupling=coupling, **kwargs
    )


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return model(x).square().mean()


def train_steps(model, optimizer, steps):
    for step in steps:
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def shrunk(model, before, shares):
    """True if layer k of the model is (1 - shares[k]) times what it was."""
    expected = [w * (1 - shares[i // 2]) for i, w in enumerate(before)]
    return all(torch.equal(a, b) for a, b in zip(weights(model), expected, strict=True))


# When it decays


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


@pytest.mark.parametrize("timing", TIMINGS)
def test_closure(timing):
    model, optimizer = make(timing)
    other, by_hand = make(timing)
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(loss_of(model, len(losses)))
        losses[-1].backward()
        return losses[-1]

    for _ in range(3):
        assert optimizer.step(closure) is losses[-1]
    train_steps(other, by_hand, range(3))
    assert len(losses) == 3
    assert_same(weights(model), weights(other))


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


# Equality with torch's own decay


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
    optimizer = LayerwiseDecay(model.parameters(), optimizer_cls, timing=timing, coupling=coupling, lr=0.05)
    base = optimizer_cls(other.parameters(), lr=0.05, weight_decay=0.0)
    train_steps(model, optimizer, range(10))
    train_steps(other, base, range(10))
    assert_same(weights(model), weights(other))


def test_the_base_optimizer_sees_its_group_only_during_the_step():
    model, optimizer = make("rwd")
    settings = [dict(group) for group in optimizer.param_groups]
    train_steps(model, optimizer, range(2))
    assert [dict(group) for group in optimizer.param_groups] == settings


def test_groups_are_restored_when_the_step_fails():
    model, optimizer = make("l2", optimizer_cls=torch.optim.SparseAdam)
    loss_of(model, 0).backward()
    before, gradients = weights(model), [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert_same([p.grad for p in model.parameters()], gradients)
    assert_same(weights(model), before)


# Checkpoints


def copied_through_a_file(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("between_train_and_step", [False, True])
@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
def test_resuming_is_exact(timing, coupling, between_train_and_step, optimizer_cls):
    kwargs = {"momentum": 0.9} if optimizer_cls is torch.optim.SGD else {}
    model, optimizer = make(timing, coupling, optimizer_cls, **kwargs)
    train_steps(model, optimizer, range(5))
    if between_train_and_step:
        optimizer.train()
    saved = copied_through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train_steps(model, optimizer, range(5, 10))

    other, resumed = make(timing, coupling, optimizer_cls, model=make_model(seed=1), **kwargs)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    applied = timing == "pwd" and between_train_and_step
    assert [group["decay_applied"] for group in resumed.param_groups] == [applied, applied]
    train_steps(other, resumed, range(5, 10))
    assert_same(weights(model), weights(other))


def test_the_state_dict_round_trips_and_names_everything():
    model, optimizer = make("rwd", "independent")
    train_steps(model, optimizer, range(2))
    state_dict = optimizer.state_dict()
    first = state_dict["param_groups"][0]
    assert first["param_names"] == ["0.weight", "0.bias"]
    assert (first["weight_decay"], first["initial_weight_decay"]) == (0.1, 0.1)
    assert (first["decay_timing"], first["decay_coupling"], first["decay_applied"]) == (
        "rwd",
        "independent",
        False,
    )
    assert set(state_dict["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    _, resumed = make("rwd", "independent")
    resumed.load_state_dict(copied_through_a_file(state_dict))
    again = resumed.state_dict()
    assert again["param_groups"] == state_dict["param_groups"]
    for index, entries in state_dict["state"].items():
        assert_same(again["state"][index].values(), entries.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timing": "rwd"}, "decay_timing pwd, but this run has rwd"),
        ({"coupling": "independent"}, "decay_coupling lr, but this run has independent"),
        ({"rates": (0.1, 0.4)}, r"another weight_decay for 2\.weight \(saved 0\.5, now 0\.4\), 2\.bias"),
        ({"names": ("0", "3")}, r"has parameters that this model lacks: 2\.bias, 2\.weight"),
        ({"names": ("0", None)}, r"has parameters that this model lacks: 2\.bias, 2\.weight"),
        ({"names": ("0", "2", "4")}, r"lacks parameters of this model: 4\.bias, 4\.weight"),
        ({"names": ("2", "0"), "rates": (0.5, 0.1)}, "in another order"),
    ],
)
def test_a_state_dict_of_another_run_is_refused(change, message):
    model, optimizer = make()
    train_steps(model, optimizer, range(2))
    state_dict = optimizer.state_dict()
    names = change.get("names", ("0", "2"))
    groups = [
        {
            "params": list(nn.Linear(2, 2).parameters()),
            "param_names": [f"{name}.weight", f"{name}.bias"],
            "weight_decay": rate,
        }
        for name, rate in zip(names, change.get("rates", (0.1, 0.5, 0.5)), strict=False)
        if name is not None
    ]
    other = LayerwiseDecay(
        groups, timing=change.get("timing", "pwd"), coupling=change.get("coupling", "lr"), lr=0.05
    )
    before = other.state_dict()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state_dict)
    assert other.state_dict() == before


def test_a_state_dict_of_the_base_optimizer_is_refused():
    _, optimizer = make()
    plain = torch.optim.AdamW(make_groups(make_model()))
    with pytest.raises(ValueError, match="was not saved by LayerwiseDecay"):
        optimizer.load_state_dict(plain.state_dict())


def test_without_names_parameters_are_told_apart_by_position():
    model = make_model()
    one = LayerwiseDecay(model.parameters(), weight_decay=0.1)
    two = LayerwiseDecay(list(model.parameters())[:3], weight_decay=0.1)
    assert "param_names" not in one.param_groups[0]
    with pytest.raises(ValueError, match="lacks parameters of this model: group 0 parameter 3"):
        one.load_state_dict(two.state_dict())
    train_steps(model, one, range(2))
    three = LayerwiseDecay(make_model().parameters(), weight_decay=0.1)
    three.load_state_dict(one.state_dict())
    assert torch.equal(three.state_dict()["state"][0]["exp_avg"], one.state_dict()["state"][0]["exp_avg"])


def test_named_parameters_keep_their_names():
    model = make_model()
    optimizer = LayerwiseDecay(model.named_parameters(), weight_decay=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("timing", TIMINGS)
def test_copies_train_on_as_the_original(timing, copier):
    model, optimizer = make(timing)
    train_steps(model, optimizer, range(3))
    optimizer.train()
    model_copy, optimizer_copy = copier((model, optimizer))
    assert optimizer_copy.param_groups[0]["params"][0] is model_copy[0].weight
    train_steps(model, optimizer, range(3, 6))
    train_steps(model_copy, optimizer_copy, range(3, 6))
    assert_same(weights(model), weights(model_copy))


@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
def test_torch_distributed_checkpoint(timing, coupling, optimizer_cls):
    """Its way to allocate a state is a step without learning rate and gradients, which must not decay."""
    model, optimizer = make(timing, coupling, optimizer_cls)
    train_steps(model, optimizer, range(3))
    optimizer.zero_grad()
    at_rest = weights(model)
    saved_model = copy.deepcopy(model.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert_same(weights(model), at_rest)
    train_steps(model, optimizer, range(3, 6))

    other, resumed = make(timing, coupling, optimizer_cls, model=make_model(seed=1))
    other.load_state_dict(saved_model)
    set_optimizer_state_dict(other, resumed, saved)
    assert_same(weights(other), at_rest)
    assert [group["param_names"] for group in resumed.param_groups] == [
        ["0.weight", "0.bias"],
        ["2.weight", "2.bias"],
    ]
    train_steps(other, resumed, range(3, 6))
    assert_same(weights(model), weights(other))


# What any torch optimizer does


def test_it_is_an_optimizer_with_the_state_and_groups_of_its_base():
    _, optimizer = make(betas=(0.8, 0.9))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert "LayerwiseDecay (\nParameter Group 0\n" in repr(optimizer)
    assert "decay_timing: pwd" in repr(optimizer)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    model, optimizer = make()
    loss_of(model, 0).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    for p in model.parameters():
        assert p.grad is None if set_to_none else not p.grad.any()


def test_hooks_run_once_and_get_this_optimizer():
    model, optimizer = make()
    calls = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append(("pre", opt)))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append(("post", opt)))
    optimizer.register_state_dict_pre_hook(lambda opt: calls.append(("state pre", opt)))
    optimizer.register_state_dict_post_hook(lambda opt, saved: calls.append(("state post", opt)))
    optimizer.register_load_state_dict_pre_hook(lambda opt, saved: calls.append(("load pre", opt)))
    optimizer.register_load_state_dict_post_hook(lambda opt: calls.append(("load post", opt)))
    train_steps(model, optimizer, [0])
    optimizer.load_state_dict(optimizer.state_dict())
    names = ["pre", "post", "state pre", "state post", "load pre", "load post"]
    assert calls == [(name, optimizer) for name in names]


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


@pytest.mark.parametrize("timing", TIMINGS)
def test_schedulers_drive_the_decay(timing):
    model, optimizer = make(timing)
    other, by_hand = make(timing)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, step / 3))
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.05, 0.05]
    for step in range(6):
        for group in by_hand.param_groups:
            group["lr"] = 0.05 * min(1.0, step / 3)
        train_steps(model, optimizer, [step])
        scheduler.step()
        train_steps(other, by_hand, [step])
    assert_same(weights(model), weights(other))


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


@pytest.mark.parametrize("timing", ["wd", "rwd", "pwd"])
def test_sparse_gradients(timing):
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    optimizer = LayerwiseDecay(
        embedding.parameters(), torch.optim.SparseAdam, timing=timing, weight_decay=0.5, lr=0.1
    )
    before = embedding.weight.detach().clone()
    optimizer.train()
    embedding(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    after = embedding.weight.detach()
    untouched = [0, 2, 3, 5]
    torch.testing.assert_close(after[untouched], before[untouched] * 0.95, rtol=1e-15, atol=0)
    moved = (before[1] - 0.1) * 0.95 if timing == "rwd" else before[1] * 0.95 - 0.1
    torch.testing.assert_close(after[1], moved, rtol=0, atol=1e-7)


def test_l2_refuses_sparse_gradients():
    embedding = nn.Embedding(6, 3, sparse=True)
    optimizer = LayerwiseDecay(
        embedding.parameters(), torch.optim.SparseAdam, timing="l2", weight_decay=0.5, lr=0.1
    )
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="'l2' makes sparse gradients dense"):
        optimizer.step()


# Refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"timing": "lpwd"}, "unknown timing 'lpwd': choose one of l2, wd, rwd, pwd"),
        ({"coupling": "none"}, "unknown coupling 'none': choose one of lr, independent"),
        ({"timing": "l2", "coupling": "independent"}, "means nothing"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"weight_decay": "big"}, "weight_decay is 'big'"),
        ({"weight_decay": 20.0}, r"lr \* weight_decay = 0\.05 \* 20\.0 must be in \[0, 1\)"),
        ({"weight_decay": 20.0, "timing": "l2"}, r"lr \* weight_decay = 0\.05 \* 20\.0 must be in \[0, 1\)"),
        ({"weight_decay": 1.0, "coupling": "independent"}, r"weight_decay = 1\.0 must be in \[0, 1\)"),
        ({"lr": torch.tensor(0.5), "weight_decay": 3}, r"lr \* weight_decay = 0\.5 \* 3\.0"),
        ({"lr": -1.0}, r"Invalid learning rate: -1\.0"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LayerwiseDecay(make_model().parameters(), **{"lr": 0.05, **kwargs})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lr": 2.0}, r"2\.0 \* 0\.5 must be in"), ({"weight_decay": -0.5}, r"0\.05 \* -0\.5 must be in")],
)
@pytest.mark.parametrize("timing", TIMINGS)
def test_a_rate_that_leaves_its_range_is_refused_before_anything_changes(timing, change, message):
    model, optimizer = make(timing)
    loss_of(model, 0).backward()
    optimizer.param_groups[1].update(change)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        optimizer.train() if timing == "pwd" else optimizer.step()
    assert_same(weights(model), before)


def test_a_weight_decay_that_no_group_uses_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"weight_decay=0\.3 would be ignored.*\(0\.1, 0\.5\)"):
        LayerwiseDecay(make_groups(model), weight_decay=0.3)
    groups = make_groups(model)
    del groups[0]["weight_decay"]
    optimizer = LayerwiseDecay(groups, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.5]


class TwoWeights(torch.optim.SGD):
    def train(self):
        pass


@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs", "message"),
    [
        (torch.optim.LBFGS, {}, "LBFGS cannot be wrapped: it takes several gradients"),
        (TwoWeights, {}, "TwoWeights cannot be wrapped: it changes the weights itself"),
        ("adamw", {}, "must be a class derived from torch.optim.Optimizer, not 'adamw'"),
        (nn.Linear, {}, "must be a class derived from"),
        (torch.optim.AdamW, {"differentiable": True}, "differentiable=True is not supported"),
        (torch.optim.AdamW, {"momentum": 0.9}, "unexpected keyword argument 'momentum'"),
    ],
)
def test_what_cannot_be_wrapped(optimizer_cls, kwargs, message):
    with pytest.raises(TypeError, match=message):
        LayerwiseDecay(make_model().parameters(), optimizer_cls, lr=0.05, **kwargs)


def test_no_learning_rate_to_couple_to():
    from transformers.optimization import Adafactor

    params = list(make_model().parameters())
    with pytest.raises(ValueError, match="coupled to the learning rate, but lr is None"):
        LayerwiseDecay(params, Adafactor, weight_decay=0.1)
    optimizer = LayerwiseDecay(params, Adafactor, weight_decay=0.1, coupling="independent")
    before = [p.detach().clone() for p in params]
    optimizer.train()
    assert torch.equal(params[0], before[0] * 0.9)


@pytest.mark.parametrize("params", [torch.ones(1, requires_grad=True), {"params": []}])
def test_params_must_be_a_collection(params):
    with pytest.raises(TypeError, match="params must be an iterable of tensors or groups"):
        LayerwiseDecay(params, weight_decay=0.1)


def test_no_parameters():
    with pytest.raises(ValueError, match="empty parameter list"):
        LayerwiseDecay([], weight_decay=0.1)


def test_decay_that_low_precision_swallows_is_announced():
    half = [nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
    with pytest.warns(UserWarning, match=r"does nothing at these rates.*0\.1 \(bfloat16\)"):
        LayerwiseDecay(half, weight_decay=0.1, lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerwiseDecay(half, weight_decay=0.4, lr=1e-2)
        LayerwiseDecay(half, weight_decay=0.1, lr=1e-2, timing="l2")
        LayerwiseDecay([nn.Parameter(torch.ones(2))], weight_decay=0.1, lr=1e-2)
