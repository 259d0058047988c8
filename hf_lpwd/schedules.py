"""Layer schedules: layer index -> weight decay rate, as plain floats.

`layer_rates` is the whole interface. Indices run from 0 (the stem) to n (the head); see
`hf_lpwd.layers` for how a model's parameters get theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from hf_lpwd.messages import unknown

#: A schedule: a name, ``"power:<exponent>"``, the rates themselves (one for each index 0..n), or a
#: function ``(index, n) -> rate``.
Schedule: TypeAlias = str | Sequence[float] | Callable[[int, int], float]

DEFAULT_POWER = 2.0

_SHAPES: dict[str, Callable[[float], float]] = {
    "uniform": lambda depth: 1.0,
    "linear": lambda depth: depth,
    "reverse": lambda depth: 1.0 - depth,
    "cosine": lambda depth: (1.0 - math.cos(math.pi * depth)) / 2.0,
    "power": lambda depth: depth**DEFAULT_POWER,
}
SCHEDULES: tuple[str, ...] = tuple(_SHAPES)


def check_rate(value: float, what: str) -> float:
    """Returns a rate as a float; raises a ValueError that calls it `what` unless it is finite and >= 0."""
    try:
        # torch takes no text, so "0.1" is not a number here either.
        rate = float("" if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {value!r}, but must be a number >= 0") from None
    if not math.isfinite(rate) or rate < 0.0:
        raise ValueError(f"{what} is {rate}, but must be finite and >= 0")
    return rate


def parse_schedule(text: str) -> Schedule:
    """Returns a name of `SCHEDULES` or ``power:<exponent>`` as it is, and ``0,0.01,0.02`` as a list of rates.

    Raises:
        ValueError: The text is none of these.
    """
    if "," in text:
        return [check_rate(_number(part), f"rate of layer {i}") for i, part in enumerate(text.split(","))]
    _shape(text)
    return text


def _number(text: str) -> Any:
    """The number that a text holds, or the text."""
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _shape(name: str) -> Callable[[float], float]:
    """The function from relative depth i/n to the fraction of `weight_decay`."""
    base, colon, argument = name.partition(":")
    if base == "power" and colon:
        try:
            exponent = float(argument)
        except ValueError:
            exponent = math.nan
        if not math.isfinite(exponent) or exponent < 0.0:
            raise ValueError(
                f"layer_schedule {name!r}: the exponent must be a finite number >= 0, as in 'power:2'"
            )
        return lambda depth: depth**exponent
    if colon or base not in _SHAPES:
        raise ValueError(
            f"{unknown('layer_schedule', name, SCHEDULES)} (choose one of {', '.join(SCHEDULES)}, "
            "'power:<exponent>', a list of rates for layers 0..n, or a function (index, n) -> rate)"
        )
    return _SHAPES[base]


def layer_rates(
    weight_decay: float,
    num_layers: int,
    layer_schedule: Schedule = "linear",
    *,
    decayed_counts: Sequence[int] | None = None,
) -> list[float]:
    r"""Returns the weight decay rate of each layer index.

    With n = `num_layers` and lambda = `weight_decay`:

    | schedule | rate of index i |
    |---|---|
    | ``uniform`` | lambda |
    | ``linear`` (the paper's) | lambda * i / n |
    | ``reverse`` | lambda * (n - i) / n |
    | ``cosine`` | lambda * (1 - cos(pi * i / n)) / 2 |
    | ``power``, ``power:<p>`` | lambda * (i / n)^p, p = 2 by default |
    | a sequence, a function ``(i, n) -> rate`` | what it says; `weight_decay` then only sets the budget |

    Args:
        weight_decay: lambda, the rate of the base optimizer's `weight_decay`.
        num_layers: n, the index of the head; the stem is 0.
        layer_schedule: See above.
        decayed_counts: Number of decayed elements at each index 0..n. Where given, all rates are multiplied
            by one factor such that their mean over these elements is `weight_decay`, so that schedules can
            be compared at an equal amount of decay.

    Returns:
        n + 1 rates, of index 0 to n.

    Raises:
        ValueError: A rate is negative, NaN or infinite, a list has the wrong length, the schedule has no
            such name, or no decayed element has a rate that could be scaled to the budget.
        TypeError: `decayed_counts` is True or False, not counts.

    Examples:
        >>> layer_rates(0.5, 4)
        [0.0, 0.125, 0.25, 0.375, 0.5]
        >>> layer_rates(0.5, 4, decayed_counts=[16, 16, 16, 16, 16])  # their mean is 0.5
        [0.0, 0.25, 0.5, 0.75, 1.0]

    Source: *Layer-wise Pre-weight Decay* (OpenReview 0GZ1Bq4Tfr) for ``linear``.
    """
    weight_decay = check_rate(weight_decay, "weight_decay")
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}, but must be at least 1 (the head's index)")
    indices = range(num_layers + 1)
    if isinstance(layer_schedule, str):
        shape = _shape(layer_schedule)
        rates = [weight_decay * shape(i / num_layers) for i in indices]
    elif callable(layer_schedule):
        rates = [layer_schedule(i, num_layers) for i in indices]
    elif not isinstance(layer_schedule, Iterable) or isinstance(layer_schedule, Iterator):
        raise ValueError(
            f"layer_schedule is {layer_schedule!r}, but must be a name, a list of rates or a function"
        )
    else:
        rates = list(layer_schedule)
        if len(rates) != num_layers + 1:
            raise ValueError(
                f"layer_schedule lists {len(rates)} rates, but the model has {num_layers + 1} layer indices "
                f"(0, the stem, to {num_layers}, the head)"
            )
    rates = [check_rate(rate, f"rate of layer {i}") for i, rate in enumerate(rates)]
    if decayed_counts is None:
        return rates
    if not isinstance(decayed_counts, Sequence):
        raise TypeError(
            f"decayed_counts is {decayed_counts!r}, but must list the number of decayed elements at each "
            "index"
        )
    if len(decayed_counts) != len(rates):
        raise ValueError(f"decayed_counts lists {len(decayed_counts)} counts for {len(rates)} layer indices")
    total = math.fsum(rate * count for rate, count in zip(rates, decayed_counts, strict=True))
    elements = sum(decayed_counts)
    if weight_decay == 0.0 or elements == 0:
        return [0.0] * len(rates)
    if total == 0.0:
        raise ValueError(
            f"match_decay_budget cannot reach a mean rate of {weight_decay}: the schedule gives every layer "
            "that has decayed parameters a rate of 0"
        )
    return [rate * (weight_decay * elements / total) for rate in rates]
