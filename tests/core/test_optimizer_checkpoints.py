"""State dicts, copies and resuming of `LayerwiseDecay`."""

import copy
import io
import pickle

import pytest
import torch
from small_optimizers import (
    SETTINGS,
    TIMINGS,
    assert_same,
    make,
    make_groups,
    make_model,
    train_steps,
    weights,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

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
