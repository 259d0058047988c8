"""A study's file -> its runs: the grid, the peers, and what identifies a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.study.methods import CELLS, METHOD_FLAGS, PEERS
from hf_lpwd.study.records import record_id
from hf_lpwd.vision.arguments import make_parser, parse_args

#: Axes whose values are mappings of several flags, which change together.
GROUP_AXES = ("model", "data")

_KEYS = ("train", "grid", "peers", "paper_metric")
# What the sweep decides itself, what belongs to one run's folder, and what must not stand in a record.
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


@dataclass(frozen=True)
class RunSpec:
    """One run of a study.

    Attributes:
        settings: What decides its result: flags of `hf-lpwd train` that the study's file sets, as that
            command reads them, and where they apply `peer` and `paper_metric`.
        argv: The same flags as a command line.
    """

    settings: dict[str, Any]
    argv: list[str]

    @property
    def id(self) -> str:
        """Hash of the settings, the name of the run's record: 16 hexadecimal digits."""
        return record_id(self.settings)


def read_study(path: str) -> list[RunSpec]:
    """Reads a study's file and returns its runs, each once.

    The file is YAML or JSON with the keys

    | key | meaning |
    |---|---|
    | `train` | flags of `hf-lpwd train` that all runs share |
    | `grid` | flag -> list of values; every combination is run; `model` and `data` list mappings of flags |
    | `peers` | methods of `hf_lpwd.study.methods.PEERS` to run beside the grid's |
    | `paper_metric` | true: also read the test split after every epoch, for the paper's metric only |

    Runs are in the order of seeds, so that a sweep that ends early has whole comparisons.

    Args:
        path: The file.

    Raises:
        BadInputError: The file cannot be read, or says what no run understands; one line that names it.
    """
    study = _load(path)
    _check_names(study, _KEYS, "setting", path)
    train, grid = (_mapping(study, key, path) for key in ("train", "grid"))
    known = make_parser().flags.keys() - {"config"}
    _check_flags(train, known, f"{path}: train")
    axes = [[dict.fromkeys([name], value) for value in values] for name, values in _plain(grid, path).items()]
    _check_flags(_plain(grid, path), known, f"{path}: grid")
    for group in GROUP_AXES:
        if group in grid:
            axes.append(_group_axis(grid[group], known, f"{path}: grid: {group}"))
    peers = study.get("peers") or []
    if not isinstance(peers, list):
        raise BadInputError(f"{path}: peers is {peers!r}, but must be a list of {', '.join(PEERS)}")
    for peer in peers:
        if peer not in PEERS:
            raise BadInputError(f"{path}: {unknown('peer', peer, PEERS)}")
    paper_metric = study.get("paper_metric", False)
    if not isinstance(paper_metric, bool):
        raise BadInputError(f"{path}: paper_metric is {paper_metric!r}, but must be true or false")

    flags: list[tuple[str | None, dict[str, Any]]] = [
        (None, train | combination) for combination in _combinations(axes)
    ]
    shared = [axis for axis in axes if not axis[0].keys() & METHOD_FLAGS]
    train_of_peers = {name: value for name, value in train.items() if name not in METHOD_FLAGS}
    flags += [
        (peer, train_of_peers | combination | dict(PEERS[peer]))
        for peer in peers
        for combination in _combinations(shared)
    ]
    specs: dict[str, RunSpec] = {}
    for peer, given in flags:
        spec = _run_spec(given, peer, paper_metric)
        specs.setdefault(spec.id, spec)
    return sorted(specs.values(), key=lambda spec: spec.settings.get("seed", 0))


def _run_spec(flags: Mapping[str, Any], peer: str | None, paper_metric: bool) -> RunSpec:
    argv = as_argv(flags)
    parsed = parse_args(argv, "hf-lpwd sweep")
    settings = {}
    for name in flags:
        value = next(getattr(part, name) for part in parsed if hasattr(part, name))
        settings[name] = json.loads(json.dumps(getattr(value, "value", value), default=str))
    if peer is not None and peer not in CELLS:
        settings["peer"] = peer
    if paper_metric:
        settings["paper_metric"] = True
    return RunSpec(settings, argv)


def as_argv(flags: Mapping[str, Any]) -> list[str]:
    """Writes flags as a command line of `hf-lpwd train`; those that are None are left out."""
    argv: list[str] = []
    for name, value in flags.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        elif value is not None:
            argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return argv


def _load(path: str) -> dict[str, Any]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        study = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None
    if not isinstance(study, dict):
        raise BadInputError(f"{path} must hold the keys {', '.join(_KEYS)}")
    return study


def _mapping(study: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    value = study.get(key) or {}
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: {key} is {value!r}, but must hold flags by name")
    return value


def _plain(grid: Mapping[str, Any], path: str) -> dict[str, list[Any]]:
    """The axes of one flag each."""
    axes = {name: values for name, values in grid.items() if name not in GROUP_AXES}
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise BadInputError(f"{path}: grid: {name} is {values!r}, but must be a list of values")
    return axes


def _group_axis(values: Any, known: Set[str], where: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not values or not all(isinstance(v, dict) and v for v in values):
        raise BadInputError(f"{where} is {values!r}, but must be a list of mappings of flags")
    for value in values:
        _check_flags(value, known, where)
    return values


def _check_flags(flags: Iterable[str], known: Set[str], where: str) -> None:
    _check_names(flags, known, "flag", where)
    for name in flags:
        if name in _RESERVED or name.startswith(("hub_", "push_to_hub")):
            raise BadInputError(f"{where}: {name} has no place in a study, whose runs leave records only")


def _check_names(names: Iterable[str], known: Iterable[str], what: str, where: str) -> None:
    for name in names:
        if name not in known:
            raise BadInputError(f"{where}: {unknown(what, name, known)}")


def _combinations(axes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{name: value for part in parts for name, value in part.items()} for parts in product(*axes)]
