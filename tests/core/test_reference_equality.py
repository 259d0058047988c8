"""Fast code against the loops of reference.py, in float64, at every step."""

import itertools

import optimi
import pytest
import reference
import torch
import transformers.optimization

from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.schedules import layer_rates

STEPS, PEAK, WARMUP, COLUMNS = 24, 0.1, 4, 3
# Three layers; the loss is curved, so that u depends on where the gradient is taken.
START = [[0.8, -0.5, 0.3, 0.9, -0.7, 0.2], [0.4, -0.9, 0.6], [-0.6, 0.7, 0.5, -0.2, 0.1, 0.35]]
TARGETS = [0.3, -0.2, 0.5]
BASES = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, lambda: reference.SGD(0.9)),
    "sgd_fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}, lambda: reference.SGD(0.9)),
    "adam": (torch.optim.Adam, {}, reference.Adam),
    "adamw": (torch.optim.AdamW, {"foreach": True}, reference.Adam),
    "adamw_fused": (torch.optim.AdamW, {"fused": True}, reference.Adam),
    "adagrad": (torch.optim.Adagrad, {}, reference.Adagrad),
    "lion": (optimi.Lion, {"betas": (0.9, 0.99), "foreach": False, "triton": False}, reference.Lion),
    "adafactor": (torch.optim.Adafactor, {}, None),
}
SETTINGS = [("l2", "lr")] + [(t, c) for t in ("wd", "rwd", "pwd") for c in ("lr", "independent")]
SCHEDULES = ["uniform", "linear", "reverse", "cosine", "power", [0.3, 0.0, 0.5], lambda i, n: 0.1 * (i + 1)]


def learning_rate(step: int) -> float:
    """Warm-up from 0, then linear decay; steps count from 0."""
    return PEAK * min(step / WARMUP, (STEPS - step) / (STEPS - WARMUP))


def gradient(weights):
    """Gradient of sum over layers of (sum(w^2) - target)^2 / 4 + coupling of neighbouring layers' sums."""
    sums = [sum(tensor) for tensor in weights]
    return [
        [(sum(x * x for x in tensor) - TARGETS[k]) * w + 0.1 * (sum(sums) - sums[k]) * w * w for w in tensor]
        for k, tensor in enumerate(weights)
    ]


def set_gradients(params, kwargs):
    sign = -1.0 if kwargs.get("maximize") else 1.0
    flat = [p.detach().flatten().tolist() for p in params]
    for p, g in zip(params, gradient(flat), strict=True):
        p.grad = sign * torch.tensor(g, dtype=torch.float64).reshape(p.shape)


def train_fast(optimizer_cls, kwargs, timing, coupling, rates):
    params = [torch.tensor(t, dtype=torch.float64).reshape(-1, COLUMNS).requires_grad_() for t in START]
    optimizer = LayerwiseDecay(
        [{"params": [p], "weight_decay": rate} for p, rate in zip(params, rates, strict=True)],
        optimizer_cls,
        timing=timing,
        coupling=coupling,
        lr=PEAK,
        **kwargs,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step) / PEAK)
    history = []
    for _ in range(STEPS):
        optimizer.train()
        set_gradients(params, kwargs)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history.append([p.detach().flatten().tolist() for p in params])
    return history


def train_reference(name, timing, coupling, rates):
    rates_of_steps = [learning_rate(step) for step in range(STEPS)]
    if name == "adafactor":
        return reference.train_adafactor(START, COLUMNS, gradient, timing, coupling, rates_of_steps, rates)
    return reference.train(START, gradient, BASES[name][2](), timing, coupling, rates_of_steps, rates)


def difference(history, expected):
    return max(
        abs(x - y)
        for now, then in zip(history, expected, strict=True)
        for a, b in zip(now, then, strict=True)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "callable" if callable(s) else str(s))
@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
@pytest.mark.parametrize("name", BASES)
def test_every_step_equals_the_reference(name, timing, coupling, schedule):
    rates = layer_rates(0.4, 2, schedule)
    optimizer_cls, kwargs, _ = BASES[name]
    fast = train_fast(optimizer_cls, kwargs, timing, coupling, rates)
    assert difference(fast, train_reference(name, timing, coupling, rates)) < 1e-14


@pytest.mark.parametrize("name", BASES)
def test_settings_are_told_apart(name):
    """No two timings or couplings give the same weights, so that the equality above means something."""
    rates = layer_rates(0.4, 2)
    histories = {setting: train_reference(name, *setting, rates) for setting in SETTINGS}
    for one, other in itertools.combinations(SETTINGS, 2):
        assert difference(histories[one], histories[other]) > 1e-6, (one, other)


def black_box(optimizer_cls, kwargs, timing, coupling, rates):
    """The method around a base optimizer that has no decay of its own."""
    params = [torch.tensor(t, dtype=torch.float64).reshape(-1, COLUMNS).requires_grad_() for t in START]
    base = optimizer_cls([{"params": [p], "weight_decay": 0.0} for p in params], lr=PEAK, **kwargs)
    history = []
    for step in range(STEPS):
        eta = learning_rate(step)
        keep = [1 - (eta * rate if coupling == "lr" else rate) for rate in rates]
        with torch.no_grad():
            if timing == "pwd":
                for p, factor in zip(params, keep, strict=True):
                    p.mul_(factor)
            set_gradients(params, kwargs)
            for group, p, rate in zip(base.param_groups, params, rates, strict=True):
                group["lr"] = eta
                if timing == "l2":
                    p.grad.add_(p, alpha=-rate if kwargs.get("maximize") else rate)
            before = [p.clone() for p in params]
            base.step()
            if timing == "wd":
                for p, factor, old in zip(params, keep, before, strict=True):
                    p.sub_(old * (1 - factor))
            if timing == "rwd":
                for p, factor in zip(params, keep, strict=True):
                    p.mul_(factor)
        history.append([p.detach().flatten().tolist() for p in params])
    return history


class OwnAdamW(torch.optim.AdamW):
    """A subclass may do with `weight_decay` what it likes; here it ignores what Adam's family would do."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad + 100.0 * group["weight_decay"] * p, alpha=group["lr"])


@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs"),
    [
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {}),
        (torch.optim.AdamW, {"amsgrad": True, "maximize": True}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
        (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
        (torch.optim.Adamax, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.ASGD, {}),
        (torch.optim.Muon, {"momentum": 0.9}),
        (torch.optim.Adafactor, {"maximize": True}),
        (optimi.StableAdamW, {"foreach": False, "triton": False}),
        (optimi.Adan, {"foreach": False, "triton": False}),
        (transformers.optimization.Adafactor, {"relative_step": False, "scale_parameter": True}),
        (OwnAdamW, {}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_any_optimizer_gets_the_decay_once(optimizer_cls, kwargs, timing, coupling):
    rates = [0.0, 0.2, 0.4]
    fast = train_fast(optimizer_cls, kwargs, timing, coupling, rates)
    assert difference(fast, black_box(optimizer_cls, kwargs, timing, coupling, rates)) < 1e-13
    assert difference(fast, black_box(optimizer_cls, kwargs, timing, coupling, [0.0] * 3)) > 1e-7
