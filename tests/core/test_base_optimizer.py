"""What the base optimizer is given for a step, and what the step takes beside the weights and the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmark_optimizer import extra_memory
from torch import nn

from hf_lpwd import LayerwiseDecay
from hf_lpwd.base_optimizer import joined_groups

CPU = torch.device("cpu")


def optimizer_of(
    sizes: list[int], optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW, **kwargs: Any
) -> LayerwiseDecay:
    """Optimizer of a group for each size, with rates 0, 0.1, 0.2, ..., named weights and gradients."""
    groups = []
    for i, size in enumerate(sizes):
        weights = [nn.Parameter(torch.linspace(0.1, 1.0, size)) for _ in range(2)]
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.01)
        groups.append({"params": [(f"{i}.a", weights[0]), (f"{i}.b", weights[1])], "weight_decay": 0.1 * i})
    return LayerwiseDecay(groups, optimizer_cls, **{"lr": 0.1, "timing": "pwd", **kwargs})


def without_own_decay(optimizer: LayerwiseDecay) -> LayerwiseDecay:
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    return optimizer


def test_groups_that_look_alike_to_the_base_are_joined_in_order():
    optimizer = without_own_decay(optimizer_of([3, 4, 5]))
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    (joined,) = joined_groups(optimizer.base)
    assert [id(p) for p in joined["params"]] == [id(p) for p in weights]
    assert (joined["lr"], joined["betas"], joined["weight_decay"]) == (0.1, (0.9, 0.999), 0.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 2]


def test_only_neighbours_of_one_setting_are_joined():
    optimizer = without_own_decay(optimizer_of([3, 4, 5, 6]))
    optimizer.param_groups[1]["lr"] = 0.2
    assert [(group["lr"], len(group["params"])) for group in joined_groups(optimizer.base)] == [
        (0.1, 2),
        (0.2, 2),
        (0.1, 4),
    ]


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizer_of([3, 4]),
        without_own_decay(optimizer_of([3, 4], torch.optim.Adagrad)),
        without_own_decay(optimizer_of([3, 4], lr=torch.tensor(0.1), fused=True)),
    ],
    ids=["rates of their own", "unknown class", "tensor learning rate"],
)
def test_groups_are_the_bases_own_elsewhere(optimizer):
    assert joined_groups(optimizer.base) is optimizer.base.param_groups


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD], ids=["AdamW", "SGD"])
def test_groups_are_the_same_objects_after_a_step(optimizer_cls, timing):
    optimizer = optimizer_of([3, 4], optimizer_cls, timing=timing)
    before = list(optimizer.param_groups)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in before]
    optimizer.train()
    optimizer.step()
    assert all(now is then for now, then in zip(optimizer.param_groups, before, strict=True))
    after = [{key: value for key, value in group.items() if key != "params"} for group in before]
    assert after == settings


def test_groups_come_back_when_a_step_fails(monkeypatch):
    optimizer = optimizer_of([3, 4])
    before = optimizer.param_groups
    optimizer.train()

    def fail():
        assert optimizer.base.param_groups is not before
        raise RuntimeError("as it was told")

    monkeypatch.setattr(optimizer.base, "step", fail)
    with pytest.raises(RuntimeError, match="as it was told"):
        optimizer.step()
    assert optimizer.param_groups is before
    assert [group["weight_decay"] for group in before] == [0.0, 0.1]


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD], ids=["AdamW", "SGD"])
def test_a_step_allocates_nothing_of_the_size_of_the_weights(optimizer_cls, timing):
    optimizer = optimizer_of([100_000, 100_000], optimizer_cls, timing=timing, fused=True)

    def step() -> None:
        optimizer.train()
        optimizer.step()

    assert extra_memory(step, CPU) < 1_000


def test_extra_memory_sees_what_a_step_allocates():
    assert extra_memory(lambda: torch.ones(100_000).mul_(2.0), CPU) >= 400_000
