"""`LPWDArguments`: the settings of `LPWDConfig` as flags, to put in front of any class of training arguments.

Apart from `LPWDTrainingArguments`, because `hf-lpwd explain` takes these flags without what training imports.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, fields
from typing import Any

from hf_lpwd.config import Coupling, LPWDConfig, Timing

_SETTINGS = {setting.name: setting for setting in fields(LPWDConfig)}


def setting(name: str, **changes: Any) -> Any:
    """Returns a dataclass field as in `LPWDConfig`, but for `changes`, which `dataclasses.field` takes."""
    there = _SETTINGS[name]
    return field(**{"default": there.default, "metadata": there.metadata, **changes})


@dataclass
class LPWDArguments:
    """The decay settings alone, to put in front of any class of training arguments, whose defaults stay.

    `weight_decay`, the rate that the schedule distributes, is the field of the other class.

    Raises:
        ValueError: A setting has no such value.

    Examples:
        >>> from transformers import Seq2SeqTrainingArguments
        >>> @dataclass
        ... class Arguments(LPWDArguments, Seq2SeqTrainingArguments): ...
        >>> Arguments(output_dir="out", weight_decay=0.05, decay_timing="rwd").predict_with_generate
        False
    """

    decay_timing: Timing = setting("decay_timing")
    layer_schedule: str = setting("layer_schedule")
    decay_coupling: Coupling = setting("decay_coupling")
    match_decay_budget: bool = setting("match_decay_budget")
    decay_all: bool = setting("decay_all")
    no_decay_pattern: str | None = setting("no_decay_pattern")
    decay_by_pattern: dict | str | None = setting("decay_by_pattern")
    layer_lr_decay: float = setting("layer_lr_decay")
    layer_map: dict | str | None = setting("layer_map")
    log_layers: bool = field(
        default=True,
        metadata={"help": "Log each layer's weight decay, weight norm and gradient-to-weight ratio."},
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> LPWDArguments:
        """Refuses a class that has fields of several bases, but an `__init__` that takes those of one."""
        inherited = {name for base in cls.__mro__ for name in base.__dict__.get("__dataclass_fields__", ())}
        if not inherited <= cls.__dataclass_fields__.keys():
            raise TypeError(
                f"{cls.__name__} takes fields of several bases: write @dataclass above its class line"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("decay_by_pattern", "layer_map"):
            setattr(self, name, _from_json(name, getattr(self, name)))
        LPWDConfig.from_args(self, weight_decay=getattr(self, "weight_decay", 0.0))
        following = getattr(super(), "__post_init__", None)
        if following is not None:
            following()

    def __copy__(self) -> LPWDArguments:
        """Keeps the token, which pickles leave out."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> LPWDArguments:
        memo[id(self)] = made = object.__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the token out of pickles: Trainer writes one, training_args.bin, into every checkpoint."""
        return {name: None if name == "hub_token" else value for name, value in self.__dict__.items()}


def _from_json(name: str, value: Any) -> Any:
    """Reads a setting that a command line can only give as text."""
    if not isinstance(value, str):
        return value
    try:
        if isinstance(read := json.loads(value), dict):
            return read
        reason = 'such as {"head": 0.1}'
    except json.JSONDecodeError as error:
        reason = str(error)
    raise ValueError(f"{name} is {value!r}, but must be a JSON object: {reason}")
