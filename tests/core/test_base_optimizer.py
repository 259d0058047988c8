"""What the base optimizer does in a step of `LayerwiseDecay`, and which bases are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmark_optimizer import extra_memory
from torch import nn

from hf_lpwd import LayerwiseDecay

CPU = torch.device("cpu")


def optimizer_of(
    sizes: list[int], optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW, **kwargs: Any
) -> LayerwiseDecay:
    """Optimizer of a group for each size, with rates 0, 0.1, 0.2, ... and named weights."""
    groups = [
        {
            "params": [(f"{i}.{k}", nn.Parameter(torch.linspace(0.1, 1.0, size))) for k in "ab"],
            "weight_decay": 0.1 * i,
        }
        for i, size in enumerate(sizes)
    ]
    return LayerwiseDecay(groups, optimizer_cls, **{"lr": 0.1, "decay_timing": "pwd", **kwargs})


def step(optimizer: LayerwiseDecay) -> None:
    optimizer.train()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()


@pytest.fixture
def passes(monkeypatch):
    """The sizes of the tensors in each call of the fused kernel of Adam."""
    calls: list[list[int]] = []
    kernel = torch._fused_adamw_

    def counted(params, *args, **kwargs):
        calls.append([p.numel() for p in params])
        return kernel(params, *args, **kwargs)

    monkeypatch.setattr(torch, "_fused_adamw_", counted)
    return calls


def test_under_pwd_the_groups_of_all_layers_are_one_pass(passes):
    step(optimizer_of([3, 4, 5], fused=True))
    assert passes == [[3, 3, 4, 4, 5, 5]]


def test_only_neighbours_of_one_setting_are_joined(passes):
    optimizer = optimizer_of([3, 4, 5, 6], fused=True)
    optimizer.param_groups[1]["lr"] = 0.2
    step(optimizer)
    assert passes == [[3, 3], [4, 4], [5, 5, 6, 6]]


@pytest.mark.parametrize(
    "kwargs", [{"decay_timing": "rwd"}, {"lr": torch.tensor(0.1)}], ids=["rates of their own", "tensor lr"]
)
def test_groups_are_passes_of_their_own_elsewhere(passes, kwargs):
    step(optimizer_of([3, 4], fused=True, **kwargs))
    assert passes == [[3, 3], [4, 4]]


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("fails", [False, True])
def test_groups_are_the_same_after_a_step(optimizer_cls, timing, fails, monkeypatch):
    optimizer = optimizer_of([3, 4], optimizer_cls, decay_timing=timing)
    before = list(optimizer.param_groups)
    settings = [dict(group) for group in before]

    def fail():
        raise RuntimeError("as it was told")

    if fails:
        monkeypatch.setattr(optimizer.base, "step", fail)
        with pytest.raises(RuntimeError, match="as it was told"):
            step(optimizer)
    else:
        step(optimizer)
    assert all(now is then for now, then in zip(optimizer.param_groups, before, strict=True))
    assert [{**group, "decay_applied": False} for group in before] == settings


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
@pytest.mark.parametrize("optimizer_cls", [torch.optim.AdamW, torch.optim.SGD], ids=["AdamW", "SGD"])
def test_a_step_allocates_nothing_of_the_size_of_the_weights(optimizer_cls, timing):
    optimizer = optimizer_of([100_000, 100_000], optimizer_cls, decay_timing=timing, fused=True)
    gradients = [torch.ones(100_000) for _ in range(4)]

    def step() -> None:
        optimizer.zero_grad()
        optimizer.train()
        params = (parameter for group in optimizer.param_groups for parameter in group["params"])
        for parameter, gradient in zip(params, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    assert extra_memory(step, CPU) < 1_000


def test_extra_memory_sees_what_a_step_allocates():
    assert extra_memory(lambda: torch.ones(100_000).mul_(2.0), CPU) >= 400_000


def test_hooks_of_the_base_run():
    optimizer = optimizer_of([3])
    calls: list[str] = []
    optimizer.base.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.base.register_step_post_hook(lambda *_: calls.append("post"))
    step(optimizer)
    assert calls == ["pre", "post"]


class Estimating(torch.optim.SGD):
    """Estimates its step size, as Prodigy does: `lr` is a factor of `d`."""

    def __init__(self, params, lr=1.0, weight_decay=0.0, d=1e-3):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["d"] = d

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["d"] * group["lr"] * group["weight_decay"])
                p.sub_(p.grad, alpha=group["d"] * group["lr"])


@pytest.mark.parametrize("timing", ["wd", "rwd", "pwd"])
def test_decay_is_not_coupled_to_a_learning_rate_that_is_no_step_size(timing):
    with pytest.raises(
        ValueError, match=r"Estimating estimates its step size.*use decay_coupling 'independent'"
    ):
        optimizer_of([3, 4], Estimating, decay_timing=timing, lr=1.0)
    optimizer = optimizer_of([3, 4], Estimating, decay_timing=timing, decay_coupling="independent", lr=1.0)
    start, update = torch.linspace(0.1, 1.0, 4), 1e-3 * 0.01
    step(optimizer)
    expected = 0.9 * (start - update) if timing == "rwd" else 0.9 * start - update
    torch.testing.assert_close(optimizer.param_groups[1]["params"][0].detach(), expected)


def test_without_decay_or_under_l2_an_estimated_step_size_does_not_matter():
    optimizer_of([3], Estimating, lr=1.0)
    optimizer_of([3, 4], Estimating, decay_timing="l2", lr=1.0)
    optimizer = optimizer_of([3], Estimating, lr=1.0)
    with pytest.raises(ValueError, match="estimates its step size"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.1, "d": 1.0})


class Hessian(torch.optim.SGD):
    """Differentiates the gradients, as AdaHessian and Sophia do."""

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in params]
        ones = [torch.ones_like(p) for p in params]
        for p, h in zip(params, torch.autograd.grad(gradients, params, ones), strict=True):
            p.sub_(p.grad / h, alpha=self.param_groups[0]["lr"])


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
def test_a_base_that_differentiates_gradients(timing):
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = LayerwiseDecay([weight], Hessian, decay_timing=timing, weight_decay=0.5, lr=0.1)
    optimizer.train()
    (weight.grad,) = torch.autograd.grad(weight.square().sum(), weight, create_graph=True)
    if timing == "l2":
        with pytest.raises(
            TypeError, match="decay_timing 'l2' adds weight decay to the gradient, but Hessian diff"
        ):
            optimizer.step()
        assert weight.tolist() == [1.0, 2.0]
        return
    optimizer.step()
    # g / h is the weight itself.
    factor = {"wd": 1 - 0.1 - 0.05, "rwd": 0.95 * 0.9, "pwd": 0.95 * 0.9}[timing]
    torch.testing.assert_close(weight.detach(), torch.tensor([factor, 2 * factor], dtype=torch.float64))
    weight.grad = None  # It and its graph hold each other.


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, as pytorch_optimizer's Lookahead and Magma are."""

    def __init__(self, params, **kwargs):
        self.optimizer = torch.optim.SGD(params, **kwargs)

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def test_an_optimizer_around_another_one_is_no_base():
    with pytest.raises(
        TypeError, match="Wrapper cannot be wrapped: it wraps another optimizer; put Layerwise"
    ):
        optimizer_of([3], Wrapper)


@pytest.mark.parametrize("maximize", [False, True])
def test_l2_around_a_base_that_maximizes_as_a_whole(maximize):
    """pytorch_optimizer keeps `maximize` in the optimizer, not in its groups."""

    class Maximizing(torch.optim.SGD):
        def __init__(self, params, maximize, **kwargs):
            super().__init__(params, **kwargs)
            self.maximize = maximize
            for group in self.param_groups:
                del group["maximize"]

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(p.grad, alpha=group["lr"] * (1 if self.maximize else -1))

    weight = nn.Parameter(torch.ones(2))
    optimizer = LayerwiseDecay(
        [weight], Maximizing, decay_timing="l2", weight_decay=0.5, lr=0.1, maximize=maximize
    )
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.95, 0.95])
