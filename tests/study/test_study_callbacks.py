"""What a study measures during training, by hand."""

import pytest
import torch

from hf_lpwd.study.callbacks import opposing_penalty_rate


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
