"""Two sides of a question on one task -> their paired differences by seed, or why there is no verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_lpwd.messages import BadInputError, counted
from hf_lpwd.study.comparison import (
    NO_TEST,
    Comparison,
    corrected,
    differing_data,
    differing_devices,
    image_variance,
    num_images,
    over_tasks,
    side_name,
    too_few,
    untested,
)
from hf_lpwd.study.methods import METHOD_FLAGS
from hf_lpwd.study.plan import Question, Side
from hf_lpwd.study.record import Record, test_score
from hf_lpwd.study.stats import granularity_floor, paired
from hf_lpwd.study.tasks import (
    NOT_THE_TASK,
    Method,
    Setting,
    Task,
    differing_settings,
    measured,
    setting_of,
    shared_seeds,
    task_key,
)

Runs = Mapping[int, Record]
#: What pairs of runs share: all settings of the method that the sides do not name, and the decay rate.
Cell = tuple[str, float | None]


def family(
    question: Question, tasks: Sequence[Task], methods: Callable[[Task], list[Side]]
) -> list[Comparison]:
    """All comparisons of a question, over all tasks, corrected together.

    Args:
        question: The question.
        tasks: All tasks.
        methods: The sides to compare on a task, where the question names none.
    """
    tasks = joined(tasks, question)
    made = [
        compare(task, side, question)
        for task in tasks
        for side in (question.compare or methods(task))
        if side != question.to and has_runs(task, side)
    ]
    if question.over_tasks:
        made += [
            over_tasks([c for c in made if c.name == name], [task.name for task in tasks])
            for name in dict.fromkeys(c.name for c in made)
            if sum(c.name == name for c in made) > 1
        ]
    return corrected(made)


def joined(tasks: Sequence[Task], question: Question) -> Sequence[Task]:
    """Puts tasks together that differ in nothing but settings that the sides name (half of the images)."""
    named = _of_the_task(question)
    if not named:
        return tasks
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        settings = task.records[0].settings.model_dump(exclude_unset=True)
        shared = {name: value for name, value in settings.items() if name not in named}
        groups.setdefault(task_key(shared), []).append(task)
    return [
        found[0] if len(found) == 1 else Task(found[0].name, {}, [r for task in found for r in task.records])
        for found in groups.values()
    ]


def _of_the_task(question: Question) -> set[str]:
    """The settings that the sides name and that else tell tasks apart."""
    named = {name for side in (*question.compare, question.to) if isinstance(side, dict) for name in side}
    return named - NOT_THE_TASK


def compare(task: Task, side: Side, question: Question) -> Comparison:
    """Compares two sides on a task; what stands against a verdict is named."""
    names = side_name(side), side_name(question.to)
    base = Comparison(task.name, *names, question)
    lacking = [name for one, name in zip((side, question.to), names, strict=True) if not has_runs(task, one)]
    if lacking:
        return replace(base, withheld=f"there is no run of {' or of '.join(lacking)} on {task.name}")
    if question.at == "best" and question.measure == "accuracy":
        made = _best_against_best(task, base, side, question.to)
    else:
        made = _matched(task, base, side, question)
    return replace(made, withheld=_withheld(task, made))


def _withheld(task: Task, made: Comparison) -> str | None:
    if made.withheld:
        return made.withheld
    if not task.has_test:
        return NO_TEST
    if made.paired is None:
        return "no seed has all runs of both sides"
    return too_few(made.paired.num_seeds)


def _best_against_best(task: Task, base: Comparison, side: Side, to: Side) -> Comparison:
    """Each side at its best setting on validation, over the seeds that all settings of both have.

    All runs of a setting stand or fall together, so that deleting or adding one cannot change which setting
    is chosen but by its seed, for both sides alike. A side with more settings has more chances to be lucky:
    where one has up to k times as many, p-values count k times (the chosen setting is also the best of one
    of k groups that are as large as the other side's grid).
    """
    methods = _as_method(task, side), _as_method(task, to)
    seeds = shared_seeds(method.common_seeds() for method in methods)
    left_out = [note for method in methods for note in _left_out(method, seeds)]
    for one, other in ((methods[0], methods[1]), (methods[1], methods[0])):
        alone = sorted(set(one.seeds) - set(other.seeds))
        if alone:
            left_out.append(f"only {one.name} has seeds {', '.join(map(str, alone))}, which are left out")
    if not seeds:
        return replace(base, left_out=left_out)
    settings = (methods[0].best(seeds), methods[1].best(seeds))
    runs = (methods[0].usable[settings[0]], methods[1].usable[settings[1]])
    tried = (len(methods[0].grid), len(methods[1].grid))
    return replace(
        _of_cells(base, {("", None): runs}, seeds, math.ceil(max(tried) / min(tried))),
        settings=settings,
        tried=tried,
        left_out=left_out,
    )


def _left_out(method: Method, seeds: Sequence[int]) -> list[str]:
    notes = []
    usable = method.usable
    for setting, runs in method.grid.items():
        if setting not in usable:
            done = sum(run is not None and measured(run) for run in runs.values())
            notes.append(
                f"{method.name} at {setting} has {done} of {counted(len(runs), 'seed')} and is left out"
            )
    for seed in method.seeds:
        lacking = [str(setting) for setting, runs in usable.items() if seed not in runs]
        if lacking and seed not in seeds:
            where = lacking[0] if len(lacking) == 1 else f"{len(lacking)} of {len(usable)} settings"
            notes.append(f"seed {seed} is left out: {method.name} lacks its run at {where}")
    return notes


def _matched(task: Task, base: Comparison, side: Side, question: Question) -> Comparison:
    """The mean over all pairs of runs that differ in nothing but what the sides name."""
    sides = (side, question.to)
    # A method's name says all flags that make up a method.
    named = {name for one in sides for name in (METHOD_FLAGS if isinstance(one, str) else one)}
    cells = [_by_cell(task, one, named) for one in sides]
    shared = [cell for cell in cells[0] if cell in cells[1]]
    seeds_of = {cell: set(cells[0][cell]) & set(cells[1][cell]) for cell in shared}
    most = max(map(len, seeds_of.values()), default=0)
    usable = [cell for cell in shared if seeds_of[cell] and 2 * len(seeds_of[cell]) >= most]
    if not usable:
        return replace(base, withheld="no pair of runs differs in nothing but what is compared")
    seeds = shared_seeds(seeds_of[cell] for cell in usable)
    everyone = set().union(*seeds_of.values())
    left_out = [f"seed {seed} is left out: not all pairs have it" for seed in sorted(everyone - set(seeds))]
    if isinstance(side, str) and isinstance(question.to, str):
        for name, other, own in ((side, question.to, cells[0]), (question.to, side, cells[1])):
            if alone := len(own) - len(shared):
                left_out.append(
                    f"{alone} of {counted(len(own), 'setting')} of {name} left out: {other} lacks them"
                )
    if len(usable) < len(shared):
        left_out.append(f"{len(shared) - len(usable)} of {len(shared)} pairs of settings lack most seeds")
    if not seeds:
        return replace(base, left_out=left_out)
    pairs = {cell: (cells[0][cell], cells[1][cell]) for cell in usable}
    made = (_ranges if question.measure == "range" else _of_cells)(base, pairs, seeds)
    return replace(made, tried=(len(usable), len(usable)), left_out=left_out)


def _ranges(base: Comparison, pairs: Mapping[Cell, tuple[Runs, Runs]], seeds: Sequence[int]) -> Comparison:
    """The range over the decay rates, lower is better, averaged over what else differs."""
    by_rest: dict[str, list[tuple[Runs, Runs]]] = {}
    for (rest, decay), pair in pairs.items():
        if decay:
            by_rest.setdefault(rest, []).append(pair)
    groups = [found for found in by_rest.values() if len(found) > 1]
    if not groups:
        return replace(base, withheld="there are no two decay rates above 0 to take a range over")

    def ranges(side: int) -> np.ndarray:
        scores = [[[test_score(pair[side][s]) for s in seeds] for pair in found] for found in groups]
        return np.mean([np.ptp(found, axis=0) for found in scores], axis=0)

    # Less is better, so that a positive difference speaks for the side that is compared.
    return _of_differences(base, ranges(1) - ranges(0), seeds, list(pairs.values()))


def _of_cells(
    base: Comparison, pairs: Mapping[Cell, tuple[Runs, Runs]], seeds: Sequence[int], chances: int = 1
) -> Comparison:
    """The difference in test accuracy, mean over pairs of runs."""
    both = list(pairs.values())
    differences = np.mean([[test_score(a[s]) - test_score(b[s]) for s in seeds] for a, b in both], axis=0)
    return _of_differences(base, differences, seeds, both, 1.0 / math.sqrt(len(both)), chances)


def _of_differences(
    base: Comparison,
    differences: np.ndarray,
    seeds: Sequence[int],
    pairs: Sequence[tuple[Runs, Runs]],
    floor: float = 1.0,
    chances: int = 1,
) -> Comparison:
    sides = [[runs[seed] for runs in side for seed in seeds] for side in zip(*pairs, strict=True)]
    everyone = [run for side in sides for run in side]
    diverged = [sum(run.outcome == "diverged" for run in side) for side in sides]
    return replace(
        base,
        paired=paired(differences, floor * granularity_floor(num_images(everyone)), chances),
        by_seed=dict(zip(seeds, differences.tolist(), strict=True)),
        diverged=(diverged[0], diverged[1]),
        image_variance=image_variance(*sides) if base.question.measure == "accuracy" else None,
        withheld=untested(everyone)
        or differing_data(everyone, {"train"} if _of_the_task(base.question) else set())
        or differing_devices(everyone),
    )


def _as_method(task: Task, side: Side) -> Method:
    if isinstance(side, str) and side in task.methods:
        return task.methods[side]
    grid: dict[Setting, dict[int, Record | None]] = {}
    for run in task.records:
        if _fits(run, side):
            _add(grid.setdefault(setting_of(run.settings), {}), run, side)
    return Method(side_name(side), grid)


def _add(runs: dict[int, Any], run: Record, side: Side) -> None:
    """Adds a run by its seed; refuses a second run of that seed."""
    if (other := runs.get(run.seed)) is not None:
        raise BadInputError(
            f"{side_name(side)} stands for several runs of seed {run.seed}, which differ in "
            f"{differing_settings(other, run)}: give that side of the question as settings that say which"
        )
    runs[run.seed] = run


def has_runs(task: Task, side: Side) -> bool:
    """Whether a task has runs of a side."""
    return (isinstance(side, str) and side in task.methods) or any(_fits(run, side) for run in task.records)


def _fits(run: Record, side: Side) -> bool:
    """Whether a run has these settings; controls and baselines from elsewhere have only if they are named."""
    if isinstance(side, str):
        return run.method == side
    if "peer" not in side and run.settings.get("peer"):
        return False
    return all((run.settings.get(name) or False) == value for name, value in side.items())


def _by_cell(task: Task, side: Side, named: set[str]) -> dict[Cell, dict[int, Record]]:
    """What else a run is -> seed -> run, for the runs of a side."""
    cells: dict[Cell, dict[int, Record]] = {}
    for run in task.records:
        if measured(run) and _fits(run, side):
            setting = setting_of(run.settings)
            about = {name: run.settings.get(name) for name in METHOD_FLAGS - named}
            about |= {} if "learning_rate" in named else {"learning_rate": setting.learning_rate}
            decay = None if named & {"weight_decay", "total_decay"} else setting.decay
            _add(cells.setdefault((json.dumps(about, sort_keys=True), decay), {}), run, side)
    return cells
