"""A study's file -> its questions and runs, each with the settings that decide its result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.settings_file import read_settings
from hf_lpwd.study.checks import (
    GROUP_AXES,
    TOTAL_DECAY,
    check_effect,
    check_flags,
    check_names,
    check_once,
    check_one_rate,
    check_value,
    kind,
    known_flags,
    read_as,
)
from hf_lpwd.study.methods import BASELINES, CELLS, METHOD_FLAGS, ONE_SETTING, method_name
from hf_lpwd.study.plan import PlannedRun, Question, read_questions
from hf_lpwd.study.record import record_id
from hf_lpwd.vision.arguments import arguments_from
from hf_lpwd.vision.run_settings import run_settings

_KEYS = ("train", "grid", "baselines", "questions", "paper_metric")
_RATES = ("weight_decay", TOTAL_DECAY, "learning_rate")
# What decides a result beside the settings of a run's folder: which epoch is kept.
_SELECTION = (
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "logging_steps",
)
_NOT_THE_RUN = {"devices"}
# Their learning rates depend on how training goes.
_UNKNOWN_RATES = ("reduce_lr_on_plateau", "greedy")
# What a study may set for its methods, and no baseline takes over: value of the baselines.
_NOT_OF_BASELINES = {"decay_coupling": "lr", "layer_lr_decay": 1.0}


@dataclass(frozen=True)
class RunSpec:
    """One run of a study.

    Attributes:
        settings: What decides its result, resolved: also the defaults that the study leaves out. With them
            `peer`, `paper_metric` and `total_decay`, where they apply.
        flags: Those of them that the study sets, flags of `hf-lpwd train`.
        task: Names of data and model for the report, where the study gives them.
        name: Of its method for the report, where the study gives one.
    """

    settings: dict[str, Any]
    flags: dict[str, Any]
    task: dict[str, str] = field(default_factory=dict)
    name: str | None = None

    @cached_property
    def id(self) -> str:
        """Hash of the settings, the name of the run's record."""
        return record_id(self.settings)

    @property
    def method(self) -> str:
        """Name of its method."""
        return self.name or method_name(self.settings)


@dataclass(frozen=True)
class StudyFile:
    """What a study's file says.

    Attributes:
        runs: Each once, in the order of seeds, so that a study that ends early has whole comparisons.
        questions: The primary questions; without any in the file, that of `Question`'s defaults.
    """

    runs: list[RunSpec]
    questions: list[Question]

    def planned(self) -> list[PlannedRun]:
        """The runs as they stand in a plan."""
        return [PlannedRun(id=run.id, method=run.method, settings=run.settings) for run in self.runs]


def read_study(path: str) -> StudyFile:
    """Reads a study's file.

    The file is YAML or JSON with the keys

    | key | meaning |
    |---|---|
    | `train` | flags of `hf-lpwd train` that all runs share |
    | `grid` | flag -> list of values; every combination is run; `model`, `data` and `method` list mappings of
        flags, with a `name` for the report: `{name: shuffled, layer_schedule: "2,0,1"}` |
    | `baselines` | names of `hf_lpwd.study.methods.BASELINES`, to run beside the grid's methods |
    | `questions` | the primary questions, see `hf_lpwd.study.plan.Question` |
    | `paper_metric` | true: also read the test split after every epoch, for the paper's metric only |

    `total_decay` stands for a flag, in place of `weight_decay`: the sum of lr * weight_decay over a run.

    Raises:
        BadInputError: The file cannot be read, or says what no run understands; one line that names it.
    """
    study = read_settings(path)
    try:
        runs = _runs(study)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    questions = _questions(study.get("questions"), runs, path)
    if not study.get("grid") and not study.get("baselines"):
        raise BadInputError(f"{path}: there is nothing to compare: grid is empty")
    return StudyFile(runs, questions)


def _runs(study: dict[str, Any]) -> list[RunSpec]:
    check_names(study, _KEYS, "setting")
    train, grid = study.get("train") or {}, study.get("grid") or {}
    baselines, paper_metric = study.get("baselines") or [], study.get("paper_metric", False)
    check_flags(train, "train")
    if not isinstance(grid, dict):
        raise BadInputError(f"grid must hold lists of values by flag, not {kind(grid)}")
    by_name = {
        name: _axis(name, grid[name]) for name in sorted(grid, key=lambda n: (n == "seed", n in GROUP_AXES))
    }
    check_effect(train, by_name)
    seeds = by_name.pop("seed", [])
    axes = list(by_name.values())
    if not isinstance(baselines, list):
        raise BadInputError(f"baselines is {kind(baselines)}, but must be a list of {', '.join(BASELINES)}")
    check_names(baselines, BASELINES, "baseline")
    check_once(baselines, baselines, "baselines")
    if not isinstance(paper_metric, bool):
        raise BadInputError(f"paper_metric is {kind(paper_metric)}, but must be true or false")

    shared = [("train", train)]
    shared += [(f"grid: {name}", one) for name in ("model", "data") for one in by_name.get(name, [])]
    for where, flags_of_all in shared if baselines else ():
        for name, value in _NOT_OF_BASELINES.items():
            if read_as(flags_of_all.get(name, value)) != read_as(value):
                given = flags_of_all[name]
                raise BadInputError(
                    f"{where}: {name} {given} would not count for the baselines, which have {value}: give it "
                    f"in the grid ({name}: [{given}]) for its methods alone, or leave the baselines out"
                )

    flags = [train | one for one in _combinations(axes)]
    for given in flags:
        check_one_rate(given, "train and grid")
    of_grid = [_run_spec(given, None, paper_metric) for given in flags]
    of_baselines = [
        _run_spec(given, baseline, paper_metric)
        for baseline in baselines
        for given in _of_baseline(baseline, train, axes)
    ]
    _check_method_names(of_grid, of_baselines)
    # A seed changes no other setting: the others are resolved once for all seeds.
    read_seeds = [(seed, {"seed": _run_spec(seed, None, False).settings["seed"]}) for seed in seeds]
    specs: dict[str, RunSpec] = {}
    for spec in (*of_grid, *of_baselines):
        for seed, read in read_seeds or [({}, {})]:
            seeded = replace(spec, settings=spec.settings | read, flags=spec.flags | seed)
            specs.setdefault(seeded.id, seeded)
    return sorted(specs.values(), key=lambda spec: spec.settings["seed"])


def _check_method_names(grid: Sequence[RunSpec], baselines: Sequence[RunSpec]) -> None:
    """Refuses a name of several methods, whose runs the report would mix, and several names of a method."""
    methods: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for spec in (*grid, *baselines):
        methods.setdefault(spec.method, set()).add(method_name(spec.settings))
    # A baseline that is also a method of the grid is the same runs, and has the name that the grid gives.
    for spec in grid:
        names.setdefault(method_name(spec.settings), set()).add(spec.method)
        if spec.name in {baseline.replace("_", " ") for baseline in BASELINES}:
            raise BadInputError(f"grid: method: the name {spec.name!r} is that of a baseline")
    for name, found in methods.items():
        if len(found) > 1:
            several = ", ".join(sorted(found))
            raise BadInputError(f"grid: method: the name {name!r} stands for several methods: {several}")
    for method, found in names.items():
        if len(found) > 1:
            several = ", ".join(sorted(found))
            raise BadInputError(f"grid: method: the method {method} has several names: {several}")


def _questions(given: Any, runs: Iterable[RunSpec], path: str) -> list[Question]:
    if given is None:
        return [Question()]
    questions = read_questions(given, path)
    methods = sorted({run.method for run in runs})
    for number, question in enumerate(questions, 1):
        for side in (*question.compare, question.to):
            if isinstance(side, str) and side not in methods:
                known = f"(there are {', '.join(methods)})"
                where = f"{path}: questions: {number}"
                raise BadInputError(f"{where}: {unknown('method', side, methods)} {known}")
    return questions


def _of_baseline(
    baseline: str, train: dict[str, Any], axes: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The runs of a baseline: its own flags, over the axes that do not make up a method."""
    own = dict(BASELINES[baseline])
    shared = [axis for axis in axes if not axis[0].keys() & {*METHOD_FLAGS, "method name"}]
    if baseline in ONE_SETTING:
        shared = [[axis[len(axis) // 2]] if axis[0].keys() & set(_RATES) else axis for axis in shared]
    found = []
    for one in _combinations(shared):
        flags = {name: value for name, value in (train | one).items() if name not in METHOD_FLAGS} | own
        if "weight_decay" in own:
            flags.pop(TOTAL_DECAY, None)
        found.append(flags)
    return found


def _run_spec(flags: dict[str, Any], baseline: str | None, paper_metric: bool) -> RunSpec:
    flags = dict(flags)
    task = {group: flags.pop(f"{group} name") for group in GROUP_AXES if f"{group} name" in flags}
    named = task.pop("method", None)
    total = flags.pop(TOTAL_DECAY, None)
    if flags.get("layer_schedule") == "uniform":
        # It is at its budget as it is.
        flags.pop("match_decay_budget", None)
    parsed = arguments_from(flags)
    settings = run_settings(*parsed) | {name: getattr(parsed[2], name) for name in _SELECTION}
    for name in flags.keys() - settings.keys():
        part = next(part for part in parsed if hasattr(part, name))
        # A flag that no run's folder knows counts where it is not as it would be without it.
        default = next(one.default for one in fields(part) if one.name == name)
        if getattr(part, name) != default:
            settings[name] = getattr(part, name)
    settings = json.loads(json.dumps(settings, default=lambda value: str(getattr(value, "value", value))))
    # What is off is left out, so that a setting that a later release adds does not change the id.
    settings = {
        name: value
        for name, value in settings.items()
        if name not in _NOT_THE_RUN and value is not None and value is not False
    }
    if total is not None:
        if settings["lr_scheduler_type"] in _UNKNOWN_RATES and settings["decay_coupling"] == "lr":
            raise BadInputError(
                f"{TOTAL_DECAY} needs learning rates that are known before training, unlike those of "
                f"lr_scheduler_type {settings['lr_scheduler_type']}: give weight_decay, or another schedule"
            )
        del settings["weight_decay"]
        settings[TOTAL_DECAY] = float(total)
    if baseline is not None and baseline not in CELLS:
        settings["peer"] = baseline
    if paper_metric:
        settings["paper_metric"] = True
    return RunSpec(dict(sorted(settings.items())), flags, task, named)


def _axis(name: str, values: Any) -> list[dict[str, Any]]:
    """The values of a flag, or the mappings of several flags, that the grid combines with the others."""
    if name not in GROUP_AXES:
        check_names([name], {*known_flags(), *GROUP_AXES}, "flag", "grid: ")
        if not isinstance(values, list) or not values:
            raise BadInputError(f"grid: {name} is {kind(values)}, but must be a list of values")
        for value in values:
            check_value(name, value, "grid")
        check_once(values, [read_as(value) for value in values], f"grid: {name}")
        return [{name: value} for value in values]
    if not isinstance(values, list) or not values or not all(isinstance(v, dict) and v for v in values):
        raise BadInputError(f"grid: {name} is {kind(values)}, but must be a list of mappings of flags")
    found = []
    for value in values:
        flags = {key: one for key, one in value.items() if key != "name"}
        check_flags(flags, f"grid: {name}")
        for flag in flags.keys() - METHOD_FLAGS if name == "method" else ():
            raise BadInputError(
                f"grid: method: {flag} is no flag of a method, which are {', '.join(sorted(METHOD_FLAGS))}"
            )
        found.append(flags | ({f"{name} name": str(value["name"])} if "name" in value else {}))
    without_names = [{key: read_as(one) for key, one in v.items() if key != "name"} for v in values]
    check_once(values, without_names, f"grid: {name}")
    return found


def _combinations(axes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{name: value for part in parts for name, value in part.items()} for parts in product(*axes)]
