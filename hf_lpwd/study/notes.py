"""What a reader has to know beside the figures: of the runs, and how they deviate from the plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from hf_lpwd.messages import counted
from hf_lpwd.study.comparison import side_name
from hf_lpwd.study.plan import Plan, Question
from hf_lpwd.study.record import Record
from hf_lpwd.study.results import MethodResult
from hf_lpwd.study.tasks import Task


def notes(tasks: Sequence[Task], results: Mapping[str, Sequence[MethodResult]]) -> Iterator[str]:
    """What may mislead in the figures of the tasks, as sentences."""
    for task in tasks:
        where = f" on {task.name}" if len(tasks) > 1 else ""
        if not task.has_test:
            yield f"No test split was read{where}: there are no verdicts."
        cut = {r.data.sizes["test"] for r in task.records if r.data and r.data.test_cut_from_train}
        if cut:
            number = " or ".join(f"{size:,}" for size in sorted(cut))
            yield (
                f"The dataset has no test split{where}: {number} of its training images were held out as one "
                "before anything was chosen."
            )
        if without := [name for name, method in task.methods.items() if not method.usable]:
            yield f"No result{where}: {', '.join(without)}. No setting has half of the seeds."
        grid = [method for method in task.methods.values() if not method.is_control]
        if len({len(method.grid) for method in grid}) > 1:
            tried = ", ".join(f"{method.name} {len(method.grid)}" for method in grid)
            yield (
                f"The methods did not choose from equally many settings{where} ({tried}): where one had up "
                "to k times as many as the other, p-values and intervals count k times."
            )
        rates = {
            round(r.mean_rate / r.setting.decay, 3)
            for r in results[task.name]
            if r.setting.decay and not r.method.is_control
        }
        if len(rates) > 1:
            yield (
                f"At the same weight_decay the methods decay by different amounts{where} (see the mean "
                "rate): a gain may be one of amount. match_decay_budget compares at equal amounts."
            )
        yield from _differences(task, where)


def _differences(task: Task, where: str) -> Iterator[str]:
    versions = {name for record in task.records for name in record.versions}
    varied = [n for n in sorted(versions) if len({record.versions.get(n) for record in task.records}) > 1]
    if varied:
        yield f"The runs{where} were made with different versions of {', '.join(varied)}."
    places = [record.environment for record in task.records if record.environment]
    for name in ("device", "device_name", "devices", "threads", "commit"):
        values = {str(getattr(place, name)) for place in places}
        if len(values) > 1:
            yield f"The runs{where} differ in {name}: {', '.join(sorted(values))}."
    starts: dict[int, set[str | None]] = {}
    for record in task.records:
        if record.pairing:
            starts.setdefault(record.seed, set()).add(record.pairing.get("initial_weights"))
    unlike = sorted(seed for seed, found in starts.items() if len(found) > 1)
    if unlike:
        seeds = ", ".join(map(str, unlike))
        yield f"Runs of one seed do not start from the same weights{where} (seeds {seeds})."


def deviations(
    records: Sequence[Record],
    plans: Mapping[str, Plan | None],
    counts: Counter[str],
    asked: Sequence[Question],
) -> Iterator[str]:
    """How records and report deviate from the plans of their files, as sentences.

    Args:
        records: All of them.
        plans: File -> its plan.
        counts: See `hf_lpwd.study.analysis.Study`.
        asked: The questions that the report answers.
    """
    without = [file for file, plan in plans.items() if plan is None]
    if len(without) == len(plans):
        yield "No plan was stored with these records: what was planned is taken from the grid that is there."
        return
    if without:
        yield f"No plan was stored with {', '.join(without)}: the runs that are there count as planned."
    if counts["missing"]:
        yield f"{counts['missing']} of {counts['planned']} planned runs have no record."
    if counts["added"]:
        rest = "added after the plan was stored, and"
        one, many = f"run was {rest} does not count.", f"runs were {rest} do not count."
        yield counted(counts["added"], one, many)
    said: set[str] = set()
    for file, plan in plans.items():
        where = f" of {file}" if len(plans) > 1 else ""
        if plan is None:
            continue
        if plan.registered and plan.registered != plan.hash:
            yield f"The registered plan{where} was changed after it was registered: its hash does not fit."
        changes = [line for line in _other_questions(asked, plan.questions) if line not in said]
        said.update(changes)
        yield from changes
        planned = {run.id for run in plan.runs}
        early = [r for r in records if r.id in planned and r.times.started and r.times.started < plan.created]
        if early:
            yield f"{counted(len(early), 'record is', 'records are')} older than the plan{where}."


def _other_questions(asked: Sequence[Question], planned: Sequence[Question]) -> Iterator[str]:
    new = [question for question in asked if question not in planned]
    gone = [question for question in planned if question not in asked]
    for mine, theirs in zip_longest(new, gone):
        if theirs is None:
            yield f"Question {asked.index(mine) + 1} of the report is not in the plan."
        elif mine is None:
            yield f"Question {planned.index(theirs) + 1} of the plan is not answered."
        else:
            number = f"Question {asked.index(mine) + 1}: the" if len(asked) > 1 else "The"
            yield from (f"{number} report{change}." for change in _changes(mine, theirs))


def _changes(mine: Question, theirs: Question) -> Iterator[str]:
    for name, value in theirs:
        changed = getattr(mine, name)
        if changed == value:
            continue
        if name == "margin":
            yield f"'s margin is {changed:g} points; the plan says {value:g}"
        elif name == "to":
            yield f" compares to {side_name(changed)}; the plan says {side_name(value)}"
        else:
            yield f" has {name}: {json.dumps(changed)}; the plan says {json.dumps(value)}"
