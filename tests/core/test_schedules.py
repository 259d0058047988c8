import math

import pytest

from hf_lpwd.schedules import SCHEDULES, layer_rates, parse_schedule


def test_names():
    assert SCHEDULES == ("uniform", "linear", "reverse", "cosine", "power")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("uniform", [0.4, 0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("reverse", [0.4, 0.3, 0.2, 0.1, 0.0]),
        ("cosine", [0.0, 0.4 * (1 - math.sqrt(0.5)) / 2, 0.2, 0.4 * (1 + math.sqrt(0.5)) / 2, 0.4]),
        ("power", [0.0, 0.025, 0.1, 0.225, 0.4]),
        ("power:3", [0.0, 0.00625, 0.05, 0.16875, 0.4]),
        ("power:0", [0.4, 0.4, 0.4, 0.4, 0.4]),
        ([0.0, 0.5, 0.0, 0.25, 1.0], [0.0, 0.5, 0.0, 0.25, 1.0]),
        (lambda i, n: 0.01 * i + n, [4.0, 4.01, 4.02, 4.03, 4.04]),
    ],
)
def test_rates(schedule, expected):
    assert layer_rates(0.4, 4, schedule) == pytest.approx(expected, abs=1e-15)


def test_linear_is_the_default():
    assert layer_rates(0.4, 4) == layer_rates(0.4, 4, "linear")


def test_match_budget_makes_the_mean_over_scalars_the_weight_decay():
    counts = [100, 10, 30, 0, 60]
    rates = layer_rates(0.4, 4, "linear", decayed_counts=counts)
    mean = sum(r * c for r, c in zip(rates, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(0.4, abs=1e-15)
    # One factor for all: unmatched mean is (10*.1 + 30*.2 + 60*.4) / 200 = 0.155.
    assert rates == pytest.approx([r * 0.4 / 0.155 for r in layer_rates(0.4, 4)], abs=1e-15)


def test_match_budget_leaves_uniform_alone_and_zero_at_zero():
    assert layer_rates(0.4, 2, "uniform", decayed_counts=[5, 1, 1]) == pytest.approx([0.4] * 3, abs=1e-15)
    assert layer_rates(0.0, 2, decayed_counts=[5, 1, 1]) == [0.0] * 3
    assert layer_rates(0.4, 2, decayed_counts=[0, 0, 0]) == [0.0] * 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"weight_decay": "much"}, "weight_decay is 'much'"),
        ({"num_layers": 0}, "num_layers is 0"),
        (
            {"layer_schedule": "liner"},
            r"unknown layer_schedule 'liner': did you mean 'linear'\? \(choose",
        ),
        ({"layer_schedule": None}, "layer_schedule is None, but must be a name, a list"),
        ({"layer_schedule": "linear:2"}, "unknown layer_schedule 'linear:2'"),
        ({"layer_schedule": "power:x"}, "'power:x': the exponent"),
        ({"layer_schedule": "power:-1"}, "'power:-1': the exponent"),
        ({"layer_schedule": [0.1, 0.2]}, "lists 2 rates, but the model has 4 layer indices"),
        ({"layer_schedule": [0.1, 0.2, -0.3, 0.1]}, "rate of layer 2 is -0.3"),
        ({"layer_schedule": lambda i, n: math.nan if i == 1 else 0.0}, "rate of layer 1 is nan"),
        ({"decayed_counts": [1, 2]}, "lists 2 counts for 4"),
        ({"decayed_counts": [7, 0, 0, 0]}, "cannot reach a mean rate of 0.4"),
    ],
)
def test_errors_name_the_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        layer_rates(**{"weight_decay": 0.4, "num_layers": 3, **kwargs})


@pytest.mark.parametrize("flag", [True, False])
def test_match_budget_wants_counts(flag):
    with pytest.raises(TypeError, match=f"decayed_counts is {flag}, but must list the number"):
        layer_rates(0.4, 3, decayed_counts=flag)


def test_parse_schedule():
    assert parse_schedule("cosine") == "cosine"
    assert parse_schedule("power:1.5") == "power:1.5"
    assert parse_schedule("0, 0.01,0.5") == [0.0, 0.01, 0.5]
    with pytest.raises(ValueError, match="rate of layer 1 is 'x'"):
        parse_schedule("0,x")
    with pytest.raises(ValueError, match="unknown layer_schedule"):
        parse_schedule("quadratic")


def test_text_and_generators_are_not_rates():
    with pytest.raises(ValueError, match=r"weight_decay is '0\.1', but must be a number >= 0"):
        layer_rates("0.1", 3)
    with pytest.raises(ValueError, match=r"layer_schedule is <generator .*but must be a name"):
        layer_rates(0.1, 3, (0.1 for _ in range(4)))
