"""What `LayerwiseDecay` refuses, and how it says so."""

import math
import warnings

import pytest
import torch
from small_optimizers import TIMINGS, assert_same, loss_of, make, make_groups, make_model, weights
from torch import nn

from hf_lpwd.optimizer import LayerwiseDecay


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decay_timing": "lpwd"}, r"unknown decay_timing 'lpwd': did you mean 'pwd'\? \(choose one of l2"),
        ({"decay_coupling": "none"}, r"unknown decay_coupling 'none' \(choose one of lr, independent\)"),
        ({"decay_timing": "l2", "decay_coupling": "independent"}, "has no meaning"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"weight_decay": "big"}, "weight_decay is 'big'"),
        ({"weight_decay": 20.0}, r"lr \* weight_decay = 0\.05 \* 20\.0 must be in \[0, 1\)"),
        (
            {"weight_decay": 20.0, "decay_timing": "l2"},
            r"lr \* weight_decay = 0\.05 \* 20\.0 must be in \[0, 1\)",
        ),
        ({"weight_decay": 1.0, "decay_coupling": "independent"}, r"weight_decay = 1\.0 must be in \[0, 1\)"),
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
        (torch.optim.AdamW, {"timing": "rwd"}, "'timing': did you mean 'decay_timing'?"),
        (torch.optim.AdamW, {"coupling": "lr"}, "'coupling': did you mean 'decay_coupling'?"),
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
    optimizer = LayerwiseDecay(params, Adafactor, weight_decay=0.1, decay_coupling="independent")
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
    with pytest.warns(UserWarning, match=r"rounds to 1 at these rates.*0\.1 \(bfloat16, "):
        LayerwiseDecay(half, weight_decay=0.1, lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerwiseDecay(half, weight_decay=0.4, lr=1e-2)
        LayerwiseDecay(half, weight_decay=0.1, lr=1e-2, decay_timing="l2")
        LayerwiseDecay([nn.Parameter(torch.ones(2))], weight_decay=0.1, lr=1e-2)
