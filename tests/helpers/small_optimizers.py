"""A small float64 model of two layers with its optimizer, and the loop that trains it."""

import torch
from torch import nn

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
        make_groups(model), optimizer_cls, decay_timing=timing, decay_coupling=coupling, **kwargs
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


@torch.no_grad()
def step_by_hand(base, rates, timing, coupling, set_gradients):
    """One step of an optimizer that does not decay, with the decay of its groups at `rates` around it.

    `set_gradients()` takes the gradients at the weights of that moment.
    """

    def each():
        for group, rate in zip(base.param_groups, rates, strict=True):
            s = float(group["lr"]) * rate if coupling == "lr" else rate
            for parameter in group["params"]:
                yield group, rate, s, parameter

    if timing == "pwd":
        for _, _, s, parameter in each():
            parameter.mul_(1 - s)
    with torch.enable_grad():
        set_gradients()
    decays = []
    for group, rate, s, parameter in each():
        if timing == "l2" and parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=-rate if group.get("maximize") else rate)
        decays.append(s * parameter)
    base.step()
    for (*_, s, parameter), decay in zip(each(), decays, strict=True):
        if timing == "wd":
            parameter.sub_(decay)
        if timing == "rwd":
            parameter.mul_(1 - s)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def shrunk(model, before, shares):
    """True if layer k of the model is (1 - shares[k]) times what it was."""
    expected = [w * (1 - shares[i // 2]) for i, w in enumerate(before)]
    return all(torch.equal(a, b) for a, b in zip(weights(model), expected, strict=True))
