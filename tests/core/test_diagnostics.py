import math

import pytest
import torch

from hf_lpwd.diagnostics import layer_norms, opposing_penalty_rate, rounds_to_nothing


def test_opposing_penalty_rate_counts_by_hand():
    # theta = 1, share 0.1: opposed if 0.1 > 2 a, that is a < 0.05.
    theta = torch.ones(5, dtype=torch.float64)
    updated = torch.tensor([-1.0, 0.0, 0.04, 0.06, 0.9], dtype=torch.float64)
    assert opposing_penalty_rate([theta], [updated], [0.1]) == 3 / 5
    assert opposing_penalty_rate([-theta], [-updated], [0.1]) == 3 / 5


def test_opposing_penalty_rate_is_over_decayed_scalars():
    theta, updated = torch.ones(4), -torch.ones(4)
    assert opposing_penalty_rate([theta, theta[:2]], [updated, theta[:2]], [0.0, 0.5]) == 0.0
    assert opposing_penalty_rate([theta, theta[:2]], [updated, theta[:2]], [0.5, 0.5]) == 4 / 6
    assert opposing_penalty_rate([theta], [updated], [0.0]) == 0.0
    assert opposing_penalty_rate([], [], []) == 0.0


def test_opposing_penalty_rate_wants_as_many_of_each():
    with pytest.raises(ValueError, match="shorter"):
        opposing_penalty_rate([torch.ones(1)], [torch.ones(1)], [])


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


def test_rounds_to_nothing_at_the_edges():
    assert not rounds_to_nothing(1.0, torch.bfloat16)
    assert rounds_to_nothing(1e-20, torch.float64)
