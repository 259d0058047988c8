"""Fast code against the loops of reference.py, in float64, at every step."""

import itertools

import optimi
import pytest
import reference
import torch
import transformers.optimization
from small_optimizers import SETTINGS, step_by_hand

from hf_lpwd.optimizer import LayerwiseDecay

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
# Rates of the three layers, and factors of their learning rates, as `layer_lr_decay` sets them.
LAYERS = {
    "one rate": ([0.4, 0.4, 0.4], [1.0, 1.0, 1.0]),
    "linear": ([0.0, 0.2, 0.4], [1.0, 1.0, 1.0]),
    "learning rates of their own": ([0.4, 0.4, 0.4], [0.25, 0.5, 1.0]),
    "both": ([0.3, 0.0, 0.5], [0.5, 0.75, 1.0]),
}


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


def train_fast(optimizer_cls, kwargs, timing, coupling, rates, scales):
    params = [torch.tensor(t, dtype=torch.float64).reshape(-1, COLUMNS).requires_grad_() for t in START]
    optimizer = LayerwiseDecay(
        [
            {"params": [p], "weight_decay": rate, "lr": PEAK * scale}
            for p, rate, scale in zip(params, rates, scales, strict=True)
        ],
        optimizer_cls,
        decay_timing=timing,
        decay_coupling=coupling,
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


def train_reference(name, *settings):
    timing, coupling, rates, scales = settings
    settings = timing, coupling, [learning_rate(step) for step in range(STEPS)], rates, scales
    if name == "adafactor":
        return reference.train_adafactor(START, COLUMNS, gradient, *settings)
    return reference.train(START, gradient, BASES[name][2](), *settings)


def difference(history, expected):
    return max(
        abs(x - y)
        for now, then in zip(history, expected, strict=True)
        for a, b in zip(now, then, strict=True)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(("timing", "coupling"), SETTINGS)
@pytest.mark.parametrize("name", BASES)
def test_every_step_equals_the_reference(name, timing, coupling, layers):
    optimizer_cls, kwargs, _ = BASES[name]
    fast = train_fast(optimizer_cls, kwargs, timing, coupling, *LAYERS[layers])
    assert difference(fast, train_reference(name, timing, coupling, *LAYERS[layers])) < 1e-14


@pytest.mark.parametrize("name", BASES)
def test_settings_are_told_apart(name):
    """No two timings or couplings, and no two layers, give the same weights: the equality means something."""
    for runs in (
        [(*setting, "linear") for setting in SETTINGS],
        [("rwd", "lr", layers) for layers in LAYERS],
    ):
        histories = {run: train_reference(name, *run[:2], *LAYERS[run[2]]) for run in runs}
        for one, other in itertools.combinations(runs, 2):
            assert difference(histories[one], histories[other]) > 1e-6, (one, other)


def train_by_hand(optimizer_cls, kwargs, timing, coupling, rates, scales):
    """The method around a base optimizer that does not decay."""
    params = [torch.tensor(t, dtype=torch.float64).reshape(-1, COLUMNS).requires_grad_() for t in START]
    base = optimizer_cls([{"params": [p], "weight_decay": 0.0} for p in params], lr=PEAK, **kwargs)
    history = []
    for step in range(STEPS):
        for group, scale in zip(base.param_groups, scales, strict=True):
            group["lr"] = learning_rate(step) * scale
        step_by_hand(base, rates, timing, coupling, lambda: set_gradients(params, kwargs))
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
    layers = [0.0, 0.2, 0.4], [0.5, 1.0, 0.75]
    fast = train_fast(optimizer_cls, kwargs, timing, coupling, *layers)
    assert difference(fast, train_by_hand(optimizer_cls, kwargs, timing, coupling, *layers)) < 1e-13
    undecayed = train_by_hand(optimizer_cls, kwargs, timing, coupling, [0.0] * 3, layers[1])
    assert difference(fast, undecayed) > 1e-7
