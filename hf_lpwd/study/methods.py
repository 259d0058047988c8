"""The decay methods that a study compares: cells of timing x schedule, and baselines from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Flags that make up a method; all others are the same for the methods that are compared.
METHOD_FLAGS = frozenset(
    {"decay_timing", "layer_schedule", "decay_coupling", "match_decay_budget", "layer_lr_decay"}
)

_ADAMW = {"decay_timing": "wd", "layer_schedule": "uniform"}
_LINEAR = {"decay_timing": "wd", "layer_schedule": "linear"}

#: Baseline -> its flags. All decay as AdamW does (timing ``wd``):
#:
#: - ``no_decay``; ``adamw_uniform``; ``reverse``, the control of the linear schedule;
#: - ``linear_budget``: uniform, at the mean rate over all decayed parameters that the linear schedule has;
#: - ``shuffled_rates``: the linear schedule's rates, randomly permuted over the layers (by the run's seed);
#: - ``head_only``: the final norm, pooler and head alone decay;
#: - ``layer_wise_lr``: uniform decay, and the learning rate of layer i is 0.75^(n - i) of the head's, as in
#:   BEiT and timm's `param_groups_layer_decay`;
#: - ``l2_sp``: decay towards the weights that training began with, the pretrained ones;
#: - ``cautious_decay``: no decay where it goes against the update;
#: - ``cautious_adamw``: timm's AdamW with caution, which leaves out updates against the gradient's sign;
#: - ``noise_floor``: ``adamw_uniform`` from initial weights that differ by one part in a million: how far
#:   apart runs of one method end.
BASELINES: Mapping[str, Mapping[str, Any]] = {
    "no_decay": {**_ADAMW, "weight_decay": 0.0},
    "adamw_uniform": _ADAMW,
    "reverse": {"decay_timing": "wd", "layer_schedule": "reverse"},
    "linear_budget": _LINEAR,
    "shuffled_rates": _LINEAR,
    "head_only": _ADAMW,
    "layer_wise_lr": {**_ADAMW, "layer_lr_decay": 0.75},
    "l2_sp": _ADAMW,
    "cautious_decay": _ADAMW,
    "cautious_adamw": _ADAMW,
    "noise_floor": _ADAMW,
}
#: Baselines that are run at the middle of the grid's rates only.
ONE_SETTING = frozenset({"noise_floor"})
#: Baselines that are cells of timing x schedule, and so the same runs as a grid's.
CELLS = frozenset({"adamw_uniform", "reverse"})


def method_name(settings: Mapping[str, Any]) -> str:
    """Names the method of a run's settings: a baseline, or timing and schedule: ``"pwd linear"``."""
    if "peer" in settings:
        return str(settings["peer"]).replace("_", " ")
    schedule = settings.get("layer_schedule", "linear")
    name = f"{settings.get('decay_timing', 'pwd')} {schedule}"
    # A uniform schedule is at its budget as it is.
    if settings.get("match_decay_budget") and schedule != "uniform":
        name += " matched"
    if settings.get("decay_coupling", "lr") != "lr":
        name += f" {settings['decay_coupling']}"
    if settings.get("layer_lr_decay", 1.0) != 1.0:
        name += f" lr {settings['layer_lr_decay']:g}"
    return name
