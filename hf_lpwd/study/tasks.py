"""Records -> tasks, and in each task the methods with their grids of settings."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any, NamedTuple

from hf_lpwd.messages import BadInputError
from hf_lpwd.study.methods import BASELINES, METHOD_FLAGS
from hf_lpwd.study.plan import Plan
from hf_lpwd.study.record import Record

#: The settings in which runs of one task may differ.
NOT_THE_TASK = METHOD_FLAGS | {"weight_decay", "total_decay", "learning_rate", "seed", "peer"}
_MODEL = ("model_name_or_path", "model_type", "config_name")
_CONTROLS = {name.replace("_", " ") for name in BASELINES} - {"adamw uniform", "reverse"}


class Setting(NamedTuple):
    """The hyperparameters chosen on validation; None where the study left the default."""

    decay: float | None
    learning_rate: float | None

    def __str__(self) -> str:
        parts = [] if self.decay is None else [f"decay {self.decay:g}"]
        parts += [] if self.learning_rate is None else [f"learning rate {self.learning_rate:g}"]
        return ", ".join(parts) or "the default rates"


@dataclass(frozen=True)
class Method:
    """The runs of a method on a task, by setting and seed; `None` for a planned run without a record.

    Attributes:
        name: As in the records.
        grid: Setting -> seed -> record.
    """

    name: str
    grid: dict[Setting, dict[int, Record | None]]

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds of the method."""
        return sorted({seed for runs in self.grid.values() for seed in runs})

    @property
    def runs(self) -> list[Record | None]:
        """All of them."""
        return [run for runs in self.grid.values() for run in runs.values()]

    @cached_property
    def usable(self) -> dict[Setting, dict[int, Record]]:
        """The settings of which at least half of the seeds have a score, with these runs.

        One with fewer is left out as a whole, so that a lone extra run cannot take all seeds but one from
        the rest, and what failed everywhere (out of memory) does not end the comparison.
        """
        scored = {
            setting: {seed: run for seed, run in runs.items() if run is not None and measured(run)}
            for setting, runs in self.grid.items()
        }
        return {
            setting: runs for setting, runs in scored.items() if runs and 2 * len(runs) >= len(self.seeds)
        }

    def of_seeds(self, seeds: Container[int]) -> Method:
        """The same with the runs of some seeds; of a setting that was not usable with none."""
        usable = self.usable
        grid = {
            setting: {seed: run for seed, run in runs.items() if seed in seeds} if setting in usable else {}
            for setting, runs in self.grid.items()
        }
        return Method(self.name, grid)

    def common_seeds(self) -> list[int]:
        """The seeds that all usable settings have."""
        return shared_seeds(self.usable.values())

    def best(self, seeds: Sequence[int]) -> Setting:
        """The usable setting with the highest mean validation accuracy over seeds; the first of several."""
        return max(
            self.usable,
            key=lambda one: sum(self.usable[one][seed].score("validation") or 0.0 for seed in seeds),
        )

    @property
    def is_control(self) -> bool:
        """Whether it is a control or a baseline from elsewhere, not a combination of timing and schedule."""
        return self.name in _CONTROLS


@dataclass(frozen=True)
class Task:
    """What is compared with each other: methods on one dataset and model, all else equal.

    Attributes:
        name: For the reader.
        methods: By name.
        records: All records of the task.
    """

    name: str
    methods: dict[str, Method]
    records: list[Record] = field(repr=False)

    @property
    def missing(self) -> int:
        """How many runs have no record that were planned, or that the grid is expected to have."""
        return sum(method.runs.count(None) for method in self.methods.values())

    @property
    def has_test(self) -> bool:
        """Whether the test split was read."""
        return any("test" in record.metrics for record in self.records)


def shared_seeds(several: Iterable[Iterable[int]]) -> list[int]:
    """The seeds that stand in each of several collections."""
    sets = [set(seeds) for seeds in several]
    return sorted(set.intersection(*sets)) if sets else []


def measured(run: Record) -> bool:
    """Whether a run has a result that counts: it completed or diverged; what else fails is missing data."""
    return run.outcome != "failed" and run.score("validation") is not None


def make_tasks(records: Sequence[Record], plan: Plan | None) -> list[Task]:
    """Groups records by task, and adds the planned runs that have no record.

    Runs that were added after the plan was stored are left out; see `Plan`. Without a plan each setting of a
    method is expected with each of its seeds.
    """
    added = {run.id for run in plan.runs if run.added} if plan else set()
    planned = {run.id for run in plan.runs} if plan else None
    counted = [r for r in records if r.id not in added and (planned is None or r.id in planned)]
    groups: dict[str, list[Record]] = {}
    for record in counted:
        groups.setdefault(task_key(record.settings.model_dump(exclude_unset=True)), []).append(record)
    holes: dict[str, list[Any]] = {}
    if plan:
        present = {record.id for record in records}
        for run in plan.runs:
            if run.id not in present and not run.added:
                holes.setdefault(task_key(run.settings), []).append(run)
    keys = list(dict.fromkeys([*groups, *holes]))
    names = _names([json.loads(key) for key in keys], [groups.get(key, []) for key in keys])
    return [
        Task(name, _methods(groups.get(key, []), holes.get(key, [])), groups.get(key, []))
        for name, key in zip(names, keys, strict=True)
        if key in groups
    ]


def task_key(settings: dict[str, Any]) -> str:
    """What runs must share to be compared: all settings but method, rates and seed."""
    shared = {name: value for name, value in settings.items() if name not in NOT_THE_TASK}
    return json.dumps(shared, sort_keys=True)


def setting_of(settings: Any) -> Setting:
    """The hyperparameters of a run's settings."""
    decay = settings.get("total_decay")
    return Setting(settings.get("weight_decay") if decay is None else decay, settings.get("learning_rate"))


def differing_settings(a: Record, b: Record) -> str:
    """The settings in which two runs differ, with both values: ``"layer_schedule (linear, uniform)"``."""
    given = [one.settings.model_dump(exclude_unset=True) for one in (a, b)]
    return ", ".join(
        f"{name} ({' and '.join(str(one.get(name, 'not given')) for one in given)})"
        for name in sorted(set().union(*given))
        if given[0].get(name) != given[1].get(name)
    )


def _methods(records: Iterable[Record], holes: Iterable[Any]) -> dict[str, Method]:
    grids: dict[str, dict[Setting, dict[int, Record | None]]] = {}
    for record in records:
        runs = grids.setdefault(record.method, {}).setdefault(setting_of(record.settings), {})
        if (other := runs.get(record.seed)) is not None:
            files = [f" of {one.task['file']}" if "file" in one.task else "" for one in (other, record)]
            raise BadInputError(
                f"the records {other.id}{files[0]} and {record.id}{files[1]} are both {record.method} at "
                f"{setting_of(record.settings)}, seed {record.seed}, but differ in "
                f"{differing_settings(other, record)}: report them apart"
            )
        runs[record.seed] = record
    for run in holes:
        runs = grids.setdefault(run.method, {}).setdefault(setting_of(run.settings), {})
        runs.setdefault(int(run.settings.get("seed", 42)), None)
    methods = {}
    for name, grid in sorted(grids.items()):
        seeds = sorted({seed for runs in grid.values() for seed in runs})
        ordered = sorted(grid, key=lambda setting: [-1.0 if rate is None else rate for rate in setting])
        methods[name] = Method(
            name, {setting: {seed: grid[setting].get(seed) for seed in seeds} for setting in ordered}
        )
    return methods


def _names(tasks: list[dict[str, Any]], groups: list[list[Record]]) -> list[str]:
    """Names tasks by dataset and model, and where that is not enough by the settings that differ."""
    names = []
    for task, records in zip(tasks, groups, strict=True):
        given = records[0].task if records else {}
        data = given.get("data") or _last_part(task.get("dataset_name") or task.get("train_dir") or "digits")
        model = given.get("model") or next(
            (_last_part(task[n]) for n in _MODEL if task.get(n)), "default model"
        )
        files = {record.task.get("file") for record in records}
        file = files.pop() if len(files) == 1 else None
        names.append(f"{file}: {data}, {model}" if file else f"{data}, {model}")
    for name in {name for name in names if names.count(name) > 1}:
        places = [i for i, other in enumerate(names) if other == name]
        alike = [tasks[i] for i in places]
        varied = sorted(
            key for key in set().union(*alike) if len({json.dumps(task.get(key)) for task in alike}) > 1
        )
        for i in places:
            names[i] = f"{name} ({', '.join(f'{key}={tasks[i].get(key)}' for key in varied)})"
    return names


def _last_part(path: Any) -> str:
    return PurePath(str(path)).name or str(path)
