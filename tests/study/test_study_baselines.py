"""Peers: their rates and steps, worked by hand, and timm's own figures."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.study.baselines import CautiousDecay, DecayTowardsStart, apply_baseline
from hf_lpwd.study.quiet_run import quiet_run
from hf_lpwd.vision.arguments import parse_args


def one_step(callback, gradient):
    """One step of SGD with lr 0.5 and decay 0.4 (eta lambda = 0.2) on the weights 1, 1, -1, -1, after a
    start at 2, 2, 2, 2."""
    layer = nn.Linear(4, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = LayerwiseDecay(
        layer.named_parameters(), torch.optim.SGD, decay_timing="wd", lr=0.5, weight_decay=0.4
    )
    callback.on_train_begin(None, None, None, model=layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, -1.0, -1.0]]))
    layer.weight.grad = torch.tensor([gradient])
    state = SimpleNamespace(global_step=0)
    callback.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
    optimizer.step()
    callback.on_optimizer_step(None, state, None, optimizer=optimizer)
    return layer.weight.tolist()[0]


def test_l2_sp_by_hand():
    # theta - 0.5 g - 0.2 (theta - 2)
    assert one_step(DecayTowardsStart(), [0.0, 1.0, 0.0, 1.0]) == pytest.approx([1.2, 0.7, -0.4, -0.9])


def test_cautious_decay_by_hand():
    # theta - 0.5 g - 0.2 theta where g theta >= 0, else theta - 0.5 g
    assert one_step(CautiousDecay(), [1.0, -1.0, 1.0, 0.0]) == pytest.approx([0.3, 1.5, -1.5, -0.8])


DIGITS = ["--weight_decay", "0.1", "--learning_rate", "1e-2", "--decay_timing", "wd"]


@pytest.fixture(scope="module")
def digits():
    flags = [*DIGITS, "--layer_schedule", "uniform", "--max_train_samples", "100"]
    with quiet_run(parse_args(flags)) as prepared:
        yield prepared


def test_cautious_adamw_is_timms(digits):
    from timm.optim import AdamWLegacy

    run, args = digits
    _, optimizer = apply_baseline("cautious_adamw", run, args)
    assert type(optimizer.base) is AdamWLegacy
    assert all(group["caution"] for group in optimizer.param_groups)
    assert {group["decay_timing"] for group in optimizer.param_groups} == {"wd"}


def test_head_only(digits):
    run, args = digits
    changed, optimizer = apply_baseline("head_only", run, args)
    assert optimizer is None
    assert [layer.rate for layer in changed.plan.layers] == [0.0] * 5 + [0.1]
    assert args.layer_schedule == "0.0,0.0,0.0,0.0,0.0,0.1"
