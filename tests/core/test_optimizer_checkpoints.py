"""State dicts, copies and resuming of `LayerwiseDecay`."""

import copy
import io
from typing import ClassVar

import pytest
import torch
from small_optimizers import (
    SETTINGS,
    assert_same,
    make,
    make_groups,
    make_model,
    train_steps,
    weights,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from hf_lpwd.optimizer import LayerwiseDecay


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
        ({"lr_scales": (1.0, 0.5)}, r"another layer_lr_decay for 2\.weight \(saved 1, now 0\.5\), 2\.bias"),
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
            "layer_lr_scale": scale,
        }
        for name, rate, scale in zip(
            names, change.get("rates", (0.1, 0.5, 0.5)), change.get("lr_scales", (1.0,) * 3), strict=False
        )
        if name is not None
    ]
    other = LayerwiseDecay(
        groups, decay_timing=change.get("timing", "pwd"), decay_coupling=change.get("coupling", "lr"), lr=0.05
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


@pytest.mark.parametrize("named_now", [False, True])
@pytest.mark.parametrize("named_then", [False, True])
def test_named_and_unnamed_state_dicts_load_into_each_other_by_position(named_then, named_now):
    def create(named):
        model = make_model()
        params = model.named_parameters() if named else model.parameters()
        return model, LayerwiseDecay(params, weight_decay=0.1)

    model, then = create(named_then)
    assert ("param_names" in then.param_groups[0]) is named_then
    train_steps(model, then, range(2))
    other, now = create(named_now)
    other.load_state_dict(model.state_dict())
    now.load_state_dict(copy.deepcopy(then.state_dict()))
    assert ("param_names" in now.param_groups[0]) is (named_then or named_now)
    train_steps(model, then, range(2, 4))
    train_steps(other, now, range(2, 4))
    assert_same(weights(model), weights(other))


@pytest.mark.parametrize("named_now", [False, True])
def test_without_names_parameters_are_told_apart_by_position(named_now):
    model = make_model()
    params = model.named_parameters() if named_now else model.parameters()
    one = LayerwiseDecay(params, weight_decay=0.1)
    two = LayerwiseDecay(list(model.parameters())[:3], weight_decay=0.1)
    with pytest.raises(ValueError, match="lacks parameters of this model: group 0 parameter 3"):
        one.load_state_dict(two.state_dict())


class Stack(nn.Module):
    """Layers of the given names, each with its own initial weights; `rates` gives each layer's rate."""

    rates: ClassVar = {"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.2}

    def __init__(self, names):
        super().__init__()
        for name in names:
            torch.manual_seed(ord(name))
            self.add_module(name, nn.Linear(3, 3, bias=False).double())

    def optimizer(self):
        groups = {rate: {"params": [], "weight_decay": rate} for rate in map(self.rates.get, self._modules)}
        for name, parameter in self.named_parameters():
            groups[self.rates[name[0]]]["params"].append((name, parameter))
        return LayerwiseDecay(groups.values(), lr=0.1)

    def train_steps(self, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.train()
            sum(parameter.square().sum() for parameter in self.parameters()).backward()
            optimizer.step()


@pytest.mark.parametrize("flatten", [False, True])
def test_a_state_dict_that_was_divided_over_other_stages(flatten):
    """As torch.distributed.checkpoint does where the stages of a pipeline change: the same steps go on."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    whole = Stack("abcd")
    optimizer = whole.optimizer()
    merged = {} if flatten else {"state": {}, "param_groups": []}
    for names in ("ac", "bd"):
        stage = Stack(names)
        stage_optimizer = stage.optimizer()
        stage.train_steps(stage_optimizer, 2)
        part = get_optimizer_state_dict(stage, stage_optimizer, options=options)
        for key in part if not flatten else ():
            merged[key] = merged[key] | part[key] if key == "state" else merged[key] + part[key]
        merged |= part if flatten else {}
        whole.load_state_dict(stage.state_dict(), strict=False)
    set_optimizer_state_dict(whole, optimizer, copy.deepcopy(merged), options=options)
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["a.weight", "b.weight"],
        ["c.weight", "d.weight"],
    ]
    last = Stack("abc")
    last_optimizer = last.optimizer()
    last.load_state_dict(whole.state_dict(), strict=False)
    saved = get_optimizer_state_dict(whole, optimizer, options=options)
    set_optimizer_state_dict(last, last_optimizer, saved, options=options)
    last.train_steps(last_optimizer, 2)
    expected = Stack("abc")
    expected.train_steps(expected.optimizer(), 4)
    assert_same(weights(last), weights(expected))


def test_named_parameters_keep_their_names():
    model = make_model()
    optimizer = LayerwiseDecay(model.named_parameters(), weight_decay=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


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
