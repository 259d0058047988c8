"""The norms that a Trainer logs."""

import math

import torch

from hf_lpwd.trainer_log import layer_norms


def test_layer_norms_are_over_all_tensors_of_a_layer():
    tensors = {
        0: [torch.tensor([3.0]), torch.tensor([[0.0], [4.0]])],
        "head": [torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True)],
        "none": [],
    }
    assert layer_norms(tensors) == {0: 5.0, "head": 1.0}
    assert layer_norms({}) == {}
    mixed = {0: [torch.full((4,), 2.0, dtype=torch.bfloat16), torch.tensor([3.0])]}
    assert layer_norms(mixed) == {0: 5.0}
    assert math.isinf(layer_norms({0: [torch.tensor([math.inf])]})[0])
