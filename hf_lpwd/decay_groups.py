"""The keys that decay adds to a torch parameter group: defaults, checks, and comparison with a checkpoint.

A group of `hf_lpwd.LayerwiseDecay` holds beside torch's own keys:

| key | meaning |
|---|---|
| `weight_decay` | lambda, read anew at every step, so that a schedule may change it |
| `initial_weight_decay` | lambda as first given; identifies the run, as `initial_lr` does |
| `decay_timing`, `decay_coupling` | see `LayerwiseDecay` |
| `decay_applied` | ``pwd`` has decayed, and the step that belongs to it is yet to come |
| `decay_debt` | decay that low-precision weights are yet to get, see `hf_lpwd.low_precision` |
| `decay_portions` | how often they got some |
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_lpwd.config import check_timing
from hf_lpwd.schedules import check_rate

PWD_UNDER_DEEPSPEED = (
    "timing 'pwd' changes the weights before the forward pass, but DeepSpeed uses its own copy of them "
    "there: use 'rwd', the same walk over the weights shifted by one decay"
)


def completed(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a parameter group that has every key of the module's table.

    Args:
        group: As the user gave it.
        defaults: For the keys that it lacks.

    Raises:
        TypeError: The group is no dict.
        ValueError: Its `weight_decay` is no number, negative, NaN or infinite.
    """
    if not isinstance(group, dict):
        raise TypeError(f"a parameter group must be a dict, not a {type(group).__name__}")
    group = {**defaults, **group, "decay_applied": False, "decay_debt": 0.0, "decay_portions": 0}
    group["weight_decay"] = check_rate(group["weight_decay"], "weight_decay")
    return {"initial_weight_decay": group["weight_decay"], **group}


def check_group(group: dict[str, Any]) -> None:
    """Raises a ValueError that names what is wrong with the settings of a `completed` group."""
    check_timing(group["decay_timing"], group["decay_coupling"])
    shrinkage(group)


def check_own_weights(group: dict[str, Any]) -> None:
    """Raises a RuntimeError if the group holds flattened copies in place of the model's own parameters."""
    if len(group.get("param_names", group["params"])) != len(group["params"]):
        raise RuntimeError(PWD_UNDER_DEEPSPEED)


def shrinkage(group: dict[str, Any]) -> Any:
    """Returns the share of a weight that one step takes away: eta * lambda, or lambda if independent.

    Returns:
        A float; a tensor where `lr` is one on a device, which is not looked at, as that would stall the
        device. 0.0 under ``l2``, which does not shrink weights.

    Raises:
        ValueError: It is not in [0, 1), or the group has no learning rate to couple the decay to.
    """
    rate, lr, timing = group["weight_decay"], group.get("lr"), group["decay_timing"]
    if group["decay_coupling"] == "independent":
        share = rate
    elif lr is None:
        if timing == "l2":
            return 0.0
        raise ValueError("decay is coupled to the learning rate, but lr is None: give the optimizer a number")
    elif isinstance(lr, Tensor) and lr.device.type != "cpu":
        return 0.0 if timing == "l2" else lr * rate
    else:
        share = float(lr) * rate
    if not 0.0 <= share < 1.0:
        formula = f"weight_decay = {rate}"
        if group["decay_coupling"] == "lr":
            formula = f"lr * weight_decay = {float(group['lr'])} * {rate}"
        raise ValueError(f"{formula} must be in [0, 1): at 1 a single step would take away the whole weight")
    return 0.0 if timing == "l2" else share


def check_same_run(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Raises a ValueError unless `saved` are the groups of the same parameters with the same decay.

    Args:
        groups: An optimizer's parameter groups.
        saved: The `param_groups` of a state dict.
    """
    if any("decay_timing" not in group for group in saved):
        raise ValueError("the state dict has no decay settings: it was not saved by LayerwiseDecay")
    for key in ("decay_timing", "decay_coupling"):
        then, now = (sorted({group[key] for group in side}) for side in (saved, groups))
        if then != now:
            raise ValueError(
                f"the state dict was saved with {key} {'/'.join(then)}, but this run has {'/'.join(now)}"
            )
    then_rates, now_rates = _rate_by_name(saved), _rate_by_name(groups)
    for what, names in (
        ("has parameters that this model lacks", then_rates.keys() - now_rates.keys()),
        ("lacks parameters of this model", now_rates.keys() - then_rates.keys()),
    ):
        if names:
            raise ValueError(f"the state dict {what}: {_listed(sorted(names))}")
    changed = [
        f"{name} (saved {then_rates[name]:g}, now {rate:g})"
        for name, rate in now_rates.items()
        if then_rates[name] != rate
    ]
    if changed:
        raise ValueError(f"the state dict was saved with another weight_decay for {_listed(changed)}")
    if list(then_rates) != list(now_rates) or [len(g["params"]) for g in saved] != [
        len(g["params"]) for g in groups
    ]:
        raise ValueError("the state dict has the same parameters in another order or other groups")


def param_names(group: dict[str, Any], number: int) -> list[str]:
    """Returns the names of a group's parameters; their places, if it has none and is the one of `number`."""
    return group.get("param_names") or [
        f"group {number} parameter {place}" for place in range(len(group["params"]))
    ]


def _rate_by_name(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Rates by parameter name; by position where the groups are unnamed."""
    return {
        name: group["initial_weight_decay"]
        for i, group in enumerate(groups)
        for name in param_names(group, i)
    }


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
