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
        make_groups(model), optimizer_cls, timing=timing, coupling=coupling, **kwargs
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


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def shrunk(model, before, shares):
    """True if layer k of the model is (1 - shares[k]) times what it was."""
    expected = [w * (1 - shares[i // 2]) for i, w in enumerate(before)]
    return all(torch.equal(a, b) for a, b in zip(weights(model), expected, strict=True))
