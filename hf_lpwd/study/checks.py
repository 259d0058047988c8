"""What is refused in a study's file: unknown names, wrong kinds, repeated values, values without effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import combinations
from typing import Any

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.vision.arguments import make_parser

#: Axes whose values are mappings of several flags, which change together; `name` names them in the report.
GROUP_AXES = ("model", "data", "method")
#: Instead of weight_decay: the sum of learning rate times weight decay over a run.
TOTAL_DECAY = "total_decay"
#: Settings of a run that are not flags: the baseline that it is, and what follows from several flags.
OTHER_SETTINGS = ("peer", "paper_metric", "mixed_precision")

# What the study decides itself, what belongs to one run's folder, and what must not stand in a record.
_RESERVED = {
    "output_dir",
    "resume_from_checkpoint",
    "do_train",
    "do_eval",
    "do_predict",
    "disable_tqdm",
    "report_to",
    "token",
}


def check_effect(train: dict[str, Any], axes: dict[str, list[dict[str, Any]]]) -> None:
    """Refuses values that no run gets, since those of an axis that is read later take their place."""
    places = [("train", [train])]
    places += [(f"grid: {name}" if name in GROUP_AXES else "grid", axis) for name, axis in axes.items()]
    for (where, first), (later, last) in combinations(places, 2):
        for name in set.intersection(*(set(one) for one in last)):
            values = {read_as(one[name]) for one in first if name in one}
            if values and len(values | {read_as(one[name]) for one in last}) > 1:
                raise BadInputError(
                    f"{name} is in {where} and in {later}, and its values in {where} have no effect: "
                    "give it once"
                )


def check_once(values: list[Any], read: list[Any], where: str) -> None:
    """Refuses a list that holds a value twice; `read` holds the values as they are compared."""
    for number, value in enumerate(values):
        if read[number] in read[:number]:
            raise BadInputError(f"{where} holds {kind(value)} twice")


def read_as(value: Any) -> Any:
    """A value such that 1, 1.0 and "1e0", which YAML takes for text, are the same."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)


@cache
def known_flags() -> dict[str, bool]:
    """The flags of `hf-lpwd train`, and whether each takes several values."""
    flags = {name: action.nargs in ("*", "+") for name, action in make_parser().flags.items()}
    del flags["config"]
    return flags | {TOTAL_DECAY: False}


def check_flags(flags: Any, where: str) -> None:
    """Refuses what is no mapping of flags that a study may set."""
    if not isinstance(flags, dict):
        raise BadInputError(f"{where} must hold flags by name, not {kind(flags)}")
    check_names(flags, known_flags(), "flag", f"{where}: ")
    for name, value in flags.items():
        check_value(name, value, where)
    check_one_rate(flags, where)


def check_one_rate(flags: Mapping[str, Any], where: str) -> None:
    """Refuses a rate that is given twice."""
    if {"weight_decay", TOTAL_DECAY} <= flags.keys():
        raise BadInputError(f"{where}: give either weight_decay or {TOTAL_DECAY}")


def check_value(name: str, value: Any, where: str) -> None:
    """Refuses a flag that a study may not set, and a value that is not one value."""
    if name in _RESERVED or name.startswith(("hub_", "push_to_hub")):
        raise BadInputError(f"{where}: {name} has no place in a study, whose runs leave records only")
    if isinstance(value, list) and not known_flags()[name]:
        raise BadInputError(
            f"{where}: {name} is a list of {len(value)}, but must be one value; to compare several: "
            f"grid: {{{name}: [...]}}"
        )
    if isinstance(value, dict) and any(isinstance(one, list | dict) for one in value.values()):
        raise BadInputError(f"{where}: {name} must hold numbers or text by name")
    if name == TOTAL_DECAY and not (isinstance(value, int | float) and 0.0 <= value < float("inf")):
        raise BadInputError(f"{where}: {name} is {kind(value)}, but must be a number of 0 or more")


def check_names(names: Iterable[Any], known: Iterable[str], what: str, where: str = "") -> None:
    """Refuses unknown names, and says the nearest known one."""
    for name in names:
        if name == "peers" and "baselines" in known:
            raise BadInputError(f"{where}the key peers is called baselines now")
        if name not in list(known):
            raise BadInputError(f"{where}{unknown(what, name, known)}")


def kind(value: Any) -> str:
    """A value in a message; of a list or mapping the size alone, as YAML's aliases can make it endless."""
    if isinstance(value, list | dict):
        name = type(value).__name__
        return f"a {name} of {len(value)}" if value else f"an empty {name}"
    return repr(value)
