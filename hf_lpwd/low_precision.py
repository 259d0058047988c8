"""Decay of bfloat16 and float16 weights, where the decay of a single step rounds to nothing, or badly.

A weight of 8 significant bits times ``1 - 1e-4`` is the weight itself. So the decay of such weights is added
up in their parameter group, as `decay_debt` = - sum log(1 - fraction), and applied in portions of a few units
in the last place: smaller ones round badly (37% too strong at 2^-8 in bfloat16), larger ones come late.
Portions of one size always round the same way (3% too weak at 2^-6), so they vary between 3/4 and 5/4 of
`mean_portion`; the decay is then right to about 1% over all significands. This needs no memory and no random
numbers; the debt and the number of portions are in the state dict.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_lpwd.decay_groups import decay_fraction
from hf_lpwd.parameters import is_partitioned

# Its first multiples, modulo 1, already cover the unit interval evenly.
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def is_low_precision(dtype: torch.dtype) -> bool:
    """Tells whether weights of this type have fewer bits than float32."""
    return dtype.itemsize < 4


def rounds_to_nothing(fraction: float, dtype: torch.dtype) -> bool:
    """Tells whether multiplying by ``1 - fraction`` in `dtype` multiplies by 1; 2^-9 does in bfloat16."""
    return fraction > 0.0 and torch.tensor(1.0 - fraction, dtype=torch.float64).to(dtype).item() == 1.0


def mean_portion(dtype: torch.dtype) -> float:
    """Returns the fraction taken from weights of `dtype` at once: 2^-6 in bfloat16, 2^-9 in float16."""
    return 2.0 * torch.finfo(dtype).eps


def by_precision(
    params: list[Tensor], group: dict[str, Any], fraction: float | Tensor
) -> list[tuple[list[Tensor], float | Tensor]]:
    """Divides the decay of one step: float32 has it now, lower precision when enough has added up.

    `params` are the parameters in `group` that decay in this step. The debt of the group is updated.

    Returns:
        Parameters, with the fraction of them to take away now.
    """
    low = [p for p in params if is_low_precision(p.dtype)]
    full = [p for p in params if not is_low_precision(p.dtype)] if low else params
    parts = [(full, fraction)] if full else []
    if not low:
        return parts
    debt, portions = group["decay_debt"] - math.log1p(-float(fraction)), group["decay_portions"]
    portion = max(mean_portion(p.dtype) for p in low)
    due = -math.expm1(-debt)
    if due < portion * (0.75 + 0.5 * (portions * _GOLDEN % 1.0)):
        group["decay_debt"] = debt
        return parts
    group.update(decay_debt=0.0, decay_portions=portions + 1)
    return [*parts, (low, due)]


def warn_of_vanishing_rates(groups: Iterable[dict[str, Any]]) -> None:
    """Warns once, two calls up, of the rates that one step rounds to nothing.

    Weights that DeepSpeed has partitioned are left out: their float32 copies decay.
    """
    rates = set()
    for group in groups:
        if group["decay_timing"] == "l2":
            continue
        fraction = float(decay_fraction(group))
        own = [p for p in group["params"] if not is_partitioned(p)]
        for dtype in filter(is_low_precision, {parameter.dtype for parameter in own}):
            if rounds_to_nothing(fraction, dtype):
                steps = math.ceil(math.log1p(-mean_portion(dtype)) / math.log1p(-fraction))
                rates.add((group["weight_decay"], str(dtype).removeprefix("torch."), steps))
    if rates:
        named = ", ".join(f"{rate:g} ({dtype}, {steps} steps)" for rate, dtype, steps in sorted(rates))
        warnings.warn(
            "in the precision of the weights 1 - lr * weight_decay rounds to 1 at these rates, so that their "
            f"decay is added up and applied once in about so many steps: {named}. Float32 weights with "
            "autocast (bf16=True) decay in every step",
            stacklevel=3,
        )
