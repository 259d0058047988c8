"""The keys that weight decay adds to a torch parameter group: defaults, checks, comparison with a checkpoint.

A group of `hf_lpwd.LayerwiseDecay` holds, in addition to torch's own keys:

| key | meaning |
|---|---|
| `weight_decay` | lambda, read at every step, so that a schedule may change it |
| `initial_weight_decay` | lambda as first given; identifies the run, as `initial_lr` does |
| `decay_timing`, `decay_coupling` | see `LayerwiseDecay` |
| `decay_applied` | ``pwd`` has decayed the weights for the next step |
| `decay_debt` | decay not yet applied to low-precision weights, see `hf_lpwd.low_precision` |
| `decay_portions` | how often such decay was applied |
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_lpwd.messages import listed
from hf_lpwd.schedules import check_rate

PWD_UNDER_DEEPSPEED = (
    "decay_timing 'pwd' changes the weights before the forward pass, but DeepSpeed uses its own copy of "
    "them there: use 'rwd', which follows the same trajectory, shifted by one decay"
)


def completed(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a parameter group that has every key of the module's table.

    Raises:
        TypeError: The group is not a dict.
        ValueError: Its `weight_decay` is not a number, or negative, NaN or infinite.
    """
    if not isinstance(group, dict):
        raise TypeError(f"a parameter group must be a dict, not a {type(group).__name__}")
    group = {**defaults, **group, "decay_applied": False, "decay_debt": 0.0, "decay_portions": 0}
    group["weight_decay"] = check_rate(group["weight_decay"], "weight_decay")
    return {"initial_weight_decay": group["weight_decay"], **group}


def decay_fraction(group: dict[str, Any]) -> float | Tensor:
    """Returns the fraction of a weight that one step takes away: eta * lambda, or lambda if independent.

    Returns:
        A float; a tensor where `lr` is one on a device, which is not read, as that would stall the device.

    Raises:
        ValueError: It is not in [0, 1), or the group has no learning rate to couple the decay to.
    """
    rate, lr = group["weight_decay"], group.get("lr")
    coupled = group["decay_coupling"] == "lr"
    if coupled and isinstance(lr, Tensor) and lr.device.type != "cpu":
        return lr * rate
    if coupled and lr is None:
        if group["decay_timing"] == "l2":
            return 0.0
        raise ValueError("decay is coupled to the learning rate, but lr is None: give the optimizer a number")
    fraction = float(lr) * rate if coupled else rate  # type: ignore[arg-type]
    if not 0.0 <= fraction < 1.0:
        formula = f"lr * weight_decay = {float(lr)} * {rate}" if coupled else f"weight_decay = {rate}"  # type: ignore[arg-type]
        raise ValueError(f"{formula} must be in [0, 1): at 1 a single step would take away the whole weight")
    return fraction


def groups_to_load(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks that the groups `saved` in a state dict have the same parameters with the same decay.

    Parameters are compared by name where both sides have names, by position elsewhere.

    Returns:
        `saved`, without names if `groups` have names: groups may have been divided differently.

    Raises:
        ValueError: The message names what differs.
    """
    if any("decay_timing" not in group for group in saved):
        raise ValueError("the state dict has no decay settings: it was not saved by LayerwiseDecay")
    for key in ("decay_timing", "decay_coupling"):
        old, new = ("/".join(sorted({group[key] for group in side})) for side in (saved, groups))
        if old != new:
            raise ValueError(f"the state dict was saved with {key} {old}, but this run has {new}")
    names, saved_names = _names(groups), _names(saved)
    # torch.distributed.checkpoint has the names in place of positions.
    in_place_of_positions = [position for group in saved for position in group["params"]]
    if names == in_place_of_positions:
        saved_names = names
    if names is None or saved_names is None:
        names, saved_names = _positions(groups), _positions(saved)
    for what, missing in (
        ("has parameters that this model lacks", set(saved_names) - set(names)),
        ("lacks parameters of this model", set(names) - set(saved_names)),
    ):
        if missing:
            raise ValueError(f"the state dict {what}: {listed(sorted(missing), most=3)}")
    for key, what in (("initial_weight_decay", "weight_decay"), ("layer_lr_scale", "layer_lr_decay")):
        then, now = _by_name(saved_names, saved, key), _by_name(names, groups, key)
        changed = [f"{n} (saved {then[n]:g}, now {now[n]:g})" for n in names if then[n] != now[n]]
        if changed:
            raise ValueError(f"the state dict was saved with another {what} for {listed(changed, most=3)}")
    sizes, saved_sizes = ([len(group["params"]) for group in side] for side in (groups, saved))
    if names != saved_names or sizes != saved_sizes:
        raise ValueError(
            "the state dict has the same parameters in another order or other groups"
            + (": load_stock_state goes on from it by their names" if _names(saved) else "")
        )
    if _names(groups) is None:
        return saved
    return [{key: value for key, value in group.items() if key != "param_names"} for group in saved]


def parameter_name(parameter: Tensor, groups: list[dict[str, Any]]) -> str:
    """Returns the name of a parameter of `groups`; its position where not all have names."""
    params = [p for group in groups for p in group["params"]]
    names = _names(groups) or _positions(groups)
    return next(name for name, p in zip(names, params, strict=True) if p is parameter)


def _names(groups: list[dict[str, Any]]) -> list[str] | None:
    """The parameters' names, or None where there is not one for each."""
    names = [group.get("param_names", ()) for group in groups]
    if any(len(of) != len(group["params"]) for of, group in zip(names, groups, strict=True)):
        return None
    return [name for of in names for name in of]


def _positions(groups: list[dict[str, Any]]) -> list[str]:
    return [f"group {i} parameter {k}" for i, group in enumerate(groups) for k in range(len(group["params"]))]


def _by_name(names: list[str], groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    values = [group.get(key, 1.0) for group in groups for _ in group["params"]]
    return dict(zip(names, values, strict=True))
