"""The range of each number that a run takes, checked before anything loads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_MANY = 10**9


class Range(NamedTuple):
    """Numbers from `low` to `high`, without these two where they are open."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        return f"{low} and {'below' if self.high_open else 'at most'} {self.high:g}"


_COUNT = Range(1, _MANY)
_STEPS = Range(0, _MANY, low_open=True)
_SEED = Range(0, 2**32 - 1)

#: Flag -> its range; None is allowed where it is the default.
RANGES: dict[str, Range] = {
    "per_device_train_batch_size": Range(1, 10**6),
    "per_device_eval_batch_size": Range(1, 10**6),
    "gradient_accumulation_steps": Range(1, 10**6),
    "num_train_epochs": Range(0, 10**6, low_open=True),
    "learning_rate": Range(0, 10**4),
    "warmup_steps": Range(0, _MANY),
    "adam_beta1": Range(0, 1, high_open=True),
    "adam_beta2": Range(0, 1, high_open=True),
    "adam_epsilon": Range(0, 10**3),
    "max_grad_norm": Range(0, _MANY),
    "label_smoothing_factor": Range(0, 1, high_open=True),
    "neftune_noise_alpha": Range(0, _MANY),
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_delay": Range(0, _MANY),
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": _COUNT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0, 1024),
    "dataloader_prefetch_factor": Range(1, 10**6),
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    # Of the custom training loop.
    "num_warmup_steps": Range(0, _MANY),
    "max_train_steps": _COUNT,
}


def check_ranges(arguments: Any) -> None:
    """Raises a ValueError that names the first number of `arguments` that is out of its range.

    Args:
        arguments: Any object; the attributes that `RANGES` names are checked.

    Examples:
        >>> from types import SimpleNamespace
        >>> check_ranges(SimpleNamespace(adam_beta1=1.5))
        Traceback (most recent call last):
        ValueError: adam_beta1 is 1.5, but must be at least 0 and below 1
    """
    for name, allowed in RANGES.items():
        value = getattr(arguments, name, None)
        if value is not None and value not in allowed:
            raise ValueError(f"{name} is {value}, but must be {allowed}")
    max_steps = getattr(arguments, "max_steps", -1)
    if max_steps != -1 and max_steps not in _COUNT:
        raise ValueError(f"max_steps is {max_steps}, but must be {_COUNT}, or -1 for num_train_epochs")
