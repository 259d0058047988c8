"""`LPWDConfig`: what the user wants of weight decay: each setting's name, default, check and help text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from hf_lpwd.messages import unknown
from hf_lpwd.schedules import SCHEDULES, Schedule, check_rate, parse_schedule

if TYPE_CHECKING:
    from hf_lpwd.layers import Layers

#: When weight decay is applied; `hf_lpwd.LayerwiseDecay` has the formulas.
Timing: TypeAlias = Literal["l2", "wd", "rwd", "pwd"]
#: What a step multiplies the rate by: the learning rate, or nothing.
Coupling: TypeAlias = Literal["lr", "independent"]

TIMINGS: tuple[str, ...] = get_args(Timing)
COUPLINGS: tuple[str, ...] = get_args(Coupling)


def check_timing(timing: str, coupling: str = "lr") -> None:
    """Raises a ValueError unless `timing` and `coupling` exist and go together."""
    for what, value, known in (("decay_timing", timing, TIMINGS), ("decay_coupling", coupling, COUPLINGS)):
        if value not in known:
            raise ValueError(f"{unknown(what, value, known)} (choose one of {', '.join(known)})")
    if timing == "l2" and coupling == "independent":
        raise ValueError(
            "decay_timing 'l2' adds the decay to the gradient, so decay_coupling 'independent' has no meaning"
        )


_NUMBERS = ("weight_decay", "layer_lr_decay")
_SWITCHES = ("match_decay_budget", "decay_all")


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class LPWDConfig:
    """The settings of layer-wise weight decay, in the words of the flags, the records and the cards.

    Each field's metadata holds its help text, from which command lines take it.

    Raises:
        ValueError: A setting has no such value, or two of them exclude each other.
        TypeError: A setting is of the wrong type.

    Examples:
        >>> LPWDConfig(weight_decay=0.05, layer_schedule="power:2").decay_timing
        'pwd'
    """

    weight_decay: float = _setting(
        MISSING,
        "Weight decay: the highest rate of the layer schedule. The mean rate over all decayed weights is "
        "lower (linear: 0.50 of it in ViT, 0.74 in Swin-T, 0.73 in ConvNeXt-T, 0.78 in ResNet-18) "
        "unless match_decay_budget is set.",
    )
    decay_timing: Timing = _setting(
        "pwd",
        "When weight decay is applied: l2 (added to the gradient), wd (decoupled, as in AdamW), rwd "
        "(after the update) or pwd (before the gradient is taken).",
    )
    layer_schedule: Schedule = _setting(
        "linear",
        f"How weight_decay is distributed over the layers: {', '.join(SCHEDULES)}, power:<exponent>, or "
        "the rates of layers 0..n separated by commas.",
    )
    decay_coupling: Coupling = _setting(
        "lr", "What a step multiplies the rate by: lr (the learning rate) or independent (nothing)."
    )
    match_decay_budget: bool = _setting(
        False, "Scale the schedule's rates so that their mean over all decayed weights is weight_decay."
    )
    decay_all: bool = _setting(False, "Decay biases, norms, position and token embeddings too.")
    no_decay_pattern: str | Sequence[str] | None = _setting(
        None, "Regular expression, searched in parameter names: only what it matches does not decay."
    )
    decay_by_pattern: Mapping[str, float] | None = _setting(
        None,
        "Regular expression, searched in parameter names -> weight decay of what it matches, exempt or "
        "not, in place of its layer's rate; the first that matches counts. On a command line JSON: "
        "'{\"head\": 0.1}'.",
    )
    layer_lr_decay: float = _setting(
        1.0,
        "Learning rate by layer, as in BEiT: layer i of n has the learning rate times this^(n - i). "
        "1 is off; 0.75 is usual.",
    )
    layer_map: Layers | None = _setting(
        None,
        "Layers by rules instead of detection: parameter name or regular expression of the whole name -> "
        'index, "stem", "block" or "head". On a command line JSON: '
        '\'{"embed.*": "stem", "layers\\.(\\d+)\\..*": "block", ".*": "head"}\'.',
    )

    def __new__(cls, *args: Any, **settings: Any) -> LPWDConfig:
        """Answers an unknown setting with the nearest name."""
        for name in settings:
            if name not in SETTINGS:
                raise TypeError(unknown("setting", name, SETTINGS))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._check_types()
        # Scalars and arrays of NumPy could not be read back from a checkpoint or a record.
        for name in _NUMBERS:
            object.__setattr__(self, name, float(getattr(self, name)))
        if hasattr(self.layer_schedule, "tolist"):
            object.__setattr__(self, "layer_schedule", self.layer_schedule.tolist())
        check_rate(self.weight_decay, "weight_decay")
        check_timing(self.decay_timing, self.decay_coupling)
        if isinstance(self.layer_schedule, str):
            parse_schedule(self.layer_schedule)
        if self.decay_all and self.no_decay_pattern is not None:
            raise ValueError(
                f"decay_all leaves nothing exempt, but no_decay_pattern is {self.no_decay_pattern!r}: "
                "drop one"
            )
        for pattern in self.no_decay_patterns:
            _check_pattern("no_decay_pattern", pattern)
        for pattern, rate in (self.decay_by_pattern or {}).items():
            _check_pattern("decay_by_pattern", pattern)
            check_rate(rate, f"decay_by_pattern[{pattern!r}]")
        if not 0.0 < self.layer_lr_decay <= 1.0:
            raise ValueError(f"layer_lr_decay is {self.layer_lr_decay!r}, but must be above 0 and at most 1")

    def _check_types(self) -> None:
        patterns = self.no_decay_pattern
        several = (
            isinstance(patterns, Sequence) and len(patterns) > 0 and all(isinstance(p, str) for p in patterns)
        )
        schedule, layers = self.layer_schedule, self.layer_map
        listed = hasattr(schedule, "__len__") and not isinstance(schedule, Mapping)
        wanted = {
            **{name: (isinstance(getattr(self, name), Real), "a number") for name in _NUMBERS},
            **{name: (isinstance(getattr(self, name), bool), "True or False") for name in _SWITCHES},
            "layer_schedule": (callable(schedule) or listed, "a name, a list of rates or a function"),
            "no_decay_pattern": (patterns is None or several, "a regular expression or a list of some"),
            "decay_by_pattern": (isinstance(self.decay_by_pattern or {}, Mapping), "a dict: pattern -> rate"),
            "layer_map": (
                layers is None or isinstance(layers, Mapping) or hasattr(layers, "places"),
                "a LayerMap, or a dict of rules",
            ),
        }
        for name, (right, what) in wanted.items():
            value = getattr(self, name)
            if not right or (name in _NUMBERS and isinstance(value, bool)):
                raise TypeError(f"{name} is {value!r}, but must be {what}")

    @property
    def no_decay_patterns(self) -> tuple[str, ...]:
        """The patterns of `no_decay_pattern`, which may be one or several."""
        given = self.no_decay_pattern
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)

    @classmethod
    def from_args(cls, args: Any, **changes: Any) -> LPWDConfig:
        """Takes settings from `changes`, then from the attributes of `args`, such as training arguments."""
        return cls(**{name: getattr(args, name) for name in SETTINGS if hasattr(args, name)} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON: a function by its name, a `LayerMap` as None."""
        return {name: _as_json(getattr(self, name)) for name in SETTINGS}


#: The names of all settings.
SETTINGS: tuple[str, ...] = tuple(f.name for f in fields(LPWDConfig))
#: What some settings were called before -> their names.
FORMER_NAMES = {
    "timing": "decay_timing",
    "schedule": "layer_schedule",
    "coupling": "decay_coupling",
    "match_budget": "match_decay_budget",
    "no_decay": "no_decay_pattern",
}


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    return getattr(value, "__name__", repr(value)) if callable(value) else None


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name} {pattern!r} is not a regular expression: {error}") from None
