"""The facts that code and documentation rest on, in float64 on a loss with curved gradients."""

import pytest
import torch

from hf_lpwd.low_precision import rounds_to_nothing
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.study.callbacks import opposing_penalty_rate

STEPS, ETA, LAMBDA = 200, 0.02, 0.5
SHARE = ETA * LAMBDA


def start():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, dtype=torch.float64, generator=generator)


def gradient(theta):
    """Of sum(log cosh(theta @ theta^T)) / 10 + sum((theta^2 - 1)^2) / 4."""
    return torch.tanh(theta @ theta.T) @ theta / 5 + (theta.square() - 1) * theta


def run(theta, optimizer_cls, timing, steps=STEPS, lr=ETA, weight_decay=LAMBDA, decay_first=None, **kwargs):
    """Trains; returns the points where gradients were taken and the weights after each step."""
    theta = theta.clone().requires_grad_()
    optimizer = LayerwiseDecay(
        [theta], optimizer_cls, decay_timing=timing, lr=lr, weight_decay=weight_decay, **kwargs
    )
    gradient_points, weights = [], []
    for _ in range(steps):
        optimizer.train()
        gradient_points.append(theta.detach().clone())
        theta.grad = gradient(theta.detach())
        optimizer.step()
        weights.append(theta.detach().clone())
    return gradient_points, weights


def furthest(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


ADAMS = [
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.Adam, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
]


# Fact 1


@pytest.mark.parametrize(("optimizer_cls", "kwargs"), ADAMS)
def test_rwd_is_decoupled_decay_with_another_learning_rate(optimizer_cls, kwargs):
    _, rwd = run(start(), optimizer_cls, "rwd", **kwargs)
    eta, lam = ETA * (1 - SHARE), LAMBDA / (1 - SHARE)
    _, decoupled = run(start(), optimizer_cls, "wd", lr=eta, weight_decay=lam, **kwargs)
    assert furthest(rwd, decoupled) < 1e-12
    _, same_settings = run(start(), optimizer_cls, "wd", **kwargs)
    assert furthest(rwd, same_settings) > 1e-4


def test_rwd_costs_no_pass_over_the_weights(monkeypatch):
    """Around Adam the whole step is the base optimizer's own."""

    def refuse(*args, **kwargs):
        raise AssertionError("a pass of its own")

    for name in ("_foreach_mul", "_foreach_mul_", "_foreach_sub_", "_foreach_add"):
        monkeypatch.setattr(torch, name, refuse)
    for timing in ("l2", "wd", "rwd"):
        run(start(), torch.optim.AdamW, timing, steps=2, fused=True)
    with pytest.raises(AssertionError, match="a pass of its own"):
        run(start(), torch.optim.SGD, "rwd", steps=1, fused=True)


# Fact 2


@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs", "tolerance"),
    [(torch.optim.SGD, {"momentum": 0.9}, 0.0), (torch.optim.AdamW, {}, 1e-13)],
)
def test_pwd_and_rwd_follow_the_same_trajectory(optimizer_cls, kwargs, tolerance):
    seen_by_pwd, pwd = run(start(), optimizer_cls, "pwd", **kwargs)
    seen_by_rwd, rwd = run((1 - SHARE) * start(), optimizer_cls, "rwd", **kwargs)
    assert furthest(seen_by_pwd, seen_by_rwd) <= tolerance
    # They part in the last decay, which pwd leaves out.
    assert furthest([(1 - SHARE) * weights for weights in pwd], rwd) <= tolerance
    assert furthest(pwd, rwd) > 1e-3


def test_from_the_same_start_pwd_and_rwd_differ_by_the_first_decay():
    seen_by_pwd, _ = run(start(), torch.optim.SGD, "pwd")
    seen_by_rwd, _ = run(start(), torch.optim.SGD, "rwd")
    assert torch.equal(seen_by_pwd[0], seen_by_rwd[0] * (1 - SHARE))


# Fact 3


@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})]
)
def test_decaying_first_with_the_old_gradient_is_decoupled_decay(optimizer_cls, kwargs):
    theta = start().requires_grad_()
    plain = optimizer_cls([theta], lr=ETA, weight_decay=0.0, **kwargs)
    by_hand = []
    for _ in range(STEPS):
        theta.grad = gradient(theta.detach())
        with torch.no_grad():
            theta.mul_(1 - SHARE)
        plain.step()
        by_hand.append(theta.detach().clone())
    _, decoupled = run(start(), optimizer_cls, "wd", **kwargs)
    _, pwd = run(start(), optimizer_cls, "pwd", **kwargs)
    assert furthest(decoupled, by_hand) < 1e-13
    assert furthest(pwd, by_hand) > 1e-4


# Fact 4


def random_steps():
    generator = torch.Generator().manual_seed(1)
    theta, update = (torch.randn(100_000, dtype=torch.float64, generator=generator) for _ in range(2))
    return theta, theta - 0.5 * update


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.99])
def test_the_opposing_condition_says_where_decoupled_decay_enlarges_a_weight(share):
    theta, updated = random_steps()
    enlarged = (updated - share * theta).abs() > updated.abs()
    condition = share * theta.square() > 2 * theta * updated
    assert torch.equal(enlarged, condition)
    assert 0.1 < condition.double().mean() < 0.4
    assert opposing_penalty_rate([theta], [updated], [share]) == condition.double().mean().item()


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.1, 0.5, 1.0])
def test_decay_after_the_update_or_before_it_never_enlarges_a_weight(share):
    theta, updated = random_steps()
    assert ((1 - share) * updated).abs().le(updated.abs()).all()
    assert ((1 - share) * theta).abs().le(theta.abs()).all()


# Fact 5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12)])
def test_low_precision_swallows_small_decay(dtype, limit):
    for share, swallowed in ((0.99 * limit, True), (1.01 * limit, False)):
        assert rounds_to_nothing(share, dtype) is swallowed
        weight = torch.ones(4, dtype=dtype)
        assert torch.equal(weight * (1 - share), weight) is swallowed
    assert not rounds_to_nothing(0.0, dtype)
    assert not rounds_to_nothing(limit / 1000, torch.float32)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("weight_decay", "moves"), [(0.19, False), (0.21, True)])
def test_bfloat16_weights_do_not_move_under_a_swallowed_decay(weight_decay, moves, fused):
    """In torch's own optimizer; tests/test_precision.py has what is done about it here."""
    weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], weight_decay=weight_decay, lr=0.01, fused=fused)
    for _ in range(100):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(4, dtype=torch.bfloat16)) is not moves
