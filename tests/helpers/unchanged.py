"""A small model and steps of its optimizer, and all that a measurement must leave as it was."""

import random
from collections import deque
from types import ModuleType

import numpy as np
import torch
from torch import nn


def make_model(width=16, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 4)).to(dtype)


def train(model, optimizer, steps):
    for _ in range(steps):
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()


def everything(model, optimizer):
    """Weights, gradients, all attributes of the optimizer and of what is in them, and random numbers."""
    gradients = [p.grad for p in model.parameters()]
    numbers = [torch.get_rng_state(), np.random.get_state(), random.getstate()]
    return frozen([list(model.parameters()), gradients, optimizer, numbers], {})


def frozen(value, seen):
    """A copy to be compared: tensors as their bytes, objects as their attributes."""
    if isinstance(value, (int, float, str, type(None))):
        return value
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = f"number {len(seen)}"
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, nn.Parameter):  # the 8-bit tensors of torchao
            return [frozen(getattr(value, name), seen) for name in value.__tensor_flatten__()[0]]
        return value.dtype, value.shape, bytes(value.detach().reshape(-1).view(torch.uint8))
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(frozen(key, seen), frozen(entry, seen)) for key, entry in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [frozen(entry, seen) for entry in value]
    if isinstance(value, torch.Generator):
        return bytes(value.get_state())
    if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, (ModuleType, nn.Module)):
        return frozen(vars(value), seen)
    return value
