"""What a study set out to do: its questions and runs, stored with the records before the first run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hf_lpwd.files import write_json
from hf_lpwd.messages import BadInputError, counted
from hf_lpwd.study.checks import OTHER_SETTINGS, check_names, known_flags
from hf_lpwd.study.record import Record
from hf_lpwd.study.records import PLAN, file_name, plan_text

#: AdamW: plain decay, the same rate in each layer.
DEFAULT_BASELINE = "wd uniform"

#: A method by its name, or all runs with these settings: `{decay_timing: rwd}`.
Side = str | dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(_Part):
    """A question that the study answers; its comparisons, over all tasks, are one family.

    Attributes:
        name: Questions of one name are one family.
        compare: The sides that are compared, each on its own; empty: every method of the grid.
        to: The side that they are compared to.
        at: ``"best"``: each side at its setting that is best on validation; ``"equal"``: the mean over all
            pairs of runs that differ in nothing but what the sides name.
        measure: ``"accuracy"`` on test, or ``"range"``: the highest minus the lowest test accuracy over
            the decay rates, where less is better.
        margin: Difference in points of accuracy that would matter.
        over_tasks: Also answer by the mean over the tasks, in the same family.
        verdict: False for a secondary question, which is answered by a difference and its interval alone.
    """

    name: str = ""
    compare: list[Side] = []
    to: Side = DEFAULT_BASELINE
    at: Literal["best", "equal"] = "best"
    measure: Literal["accuracy", "range"] = "accuracy"
    margin: Annotated[float, Field(gt=0.0, le=100.0)] = 0.3
    over_tasks: bool = False
    verdict: bool = True


class PlannedRun(_Part):
    """A run that the study wants; `added` if the plan had been stored before."""

    id: str
    method: str
    settings: dict[str, Any]
    added: bool = False


class Plan(_Part):
    """The plan of a study.

    Attributes:
        created: When it was stored, in UTC.
        questions: The primary questions.
        runs: The runs, those added later at the end.
        registered: Hash of questions and first runs, if the plan was registered; see `Plan.hash`.
    """

    created: str
    questions: list[Question]
    runs: list[PlannedRun]
    registered: str | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the questions and of the runs that were not added later, and of nothing else."""
        questions = [question.model_dump() for question in self.questions]
        for question in questions:
            # They came later, and plans were registered before.
            for name, default in (("over_tasks", False), ("verdict", True)):
                if question[name] == default:
                    del question[name]
        frozen = {
            "questions": questions,
            "runs": sorted(run.id for run in self.runs if not run.added),
        }
        return hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()


def read_plan(path: str) -> Plan | None:
    """Reads the plan that stands with the records of a folder or of a packed file; None if there is none.

    Raises:
        BadInputError: It was damaged.
    """
    try:
        text = plan_text(path)
        return None if text is None else Plan.model_validate_json(text)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            fault = error.errors()[0]
            reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise BadInputError(f"{path}: {PLAN} cannot be read: {reason}") from None


def joined_plan(
    plans: Mapping[str, Plan | None], records: Iterable[Record], asked: Sequence[Question] | None
) -> Plan | None:
    """The plan of the records of several files, None if no file has one.

    The records of a file without a plan stand in it as if they had been planned.

    Args:
        plans: File -> its plan.
        records: All records.
        asked: The questions of the report, where it does not answer those of the plans.

    Raises:
        BadInputError: The report answers the plans' questions, and these differ.
    """
    known = {file: plan for file, plan in plans.items() if plan is not None}
    if len(plans) == 1 or not known:
        return next(iter(known.values()), None)
    first, *others = known
    for file in others if asked is None else ():
        if known[file].questions != known[first].questions:
            raise BadInputError(
                f"the plans of {first} and {file} have different questions: report them apart, or name the "
                "file of the questions (--questions)"
            )
    added = [run for plan in known.values() for run in plan.runs if run.added]
    planned = [run for plan in known.values() for run in plan.runs if not run.added]
    without = {file_name(file) for file in plans.keys() - known.keys()}
    planned += [
        PlannedRun(id=r.id, method=r.method, settings=r.settings.model_dump(exclude_unset=True))
        for r in records
        if r.task.get("file") in without
    ]
    runs = {run.id: run for run in (*added, *planned)}
    return known[first].model_copy(update={"runs": list(runs.values())})


def read_questions(given: Any, where: str) -> list[Question]:
    """Reads the `questions` of a study's file.

    Args:
        given: What the file holds.
        where: The file, for errors.

    Raises:
        BadInputError: It is no list of questions, or a side names a setting that no run has.
    """
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        kind = f"a {type(given).__name__}" if isinstance(given, list | dict) else repr(given)
        raise BadInputError(f"{where}: questions is {kind}, but must be a list of mappings")
    questions = []
    for number, one in enumerate(given, 1):
        try:
            question = Question.model_validate(one)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            raise BadInputError(f"{where}: questions: {number}: {key}: {fault['msg']}") from None
        for side in (*question.compare, question.to):
            if isinstance(side, dict):
                known = {*known_flags(), *OTHER_SETTINGS}
                check_names(side, known, "setting", f"{where}: questions: {number}: ")
        for side in question.compare:
            if side == question.to:
                raise BadInputError(f"{where}: questions: {number}: compares {side!r} to itself")
            if question.compare.count(side) > 1:
                raise BadInputError(f"{where}: questions: {number}: compare holds {side!r} twice")
        questions.append(question)
    return questions


def store_plan(
    folder: str, questions: Sequence[Question], runs: Sequence[PlannedRun], *, register: bool = False
) -> Plan:
    """Stores the plan with the records, before the first run; a plan that is there is only added to.

    Args:
        folder: Of the records; made if missing.
        questions: The primary questions.
        runs: All runs of the study.
        register: Freeze the plan: its hash stands in it, and the report says each deviation.

    Raises:
        BadInputError: There is a plan with other questions or names of methods, or, to register, with other
            runs; or records without a plan are to be registered.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".plan.lock"):
        there = read_plan(folder)
        refused = register and not can_register(folder, runs)
        if there is None:
            if refused:
                raise BadInputError(
                    f"{folder} holds records already: a plan is registered before the first run"
                )
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            plan = Plan(created=now, questions=list(questions), runs=list(runs))
        else:
            known = {run.id for run in there.runs}
            new = [run.model_copy(update={"added": True}) for run in runs if run.id not in known]
            _check_same_study(folder, there, questions, runs)
            if refused:
                raise BadInputError(f"{folder} holds a plan already, from {there.created}")
            plan = there.model_copy(update={"runs": [*there.runs, *new]})
        if register:
            plan = plan.model_copy(update={"registered": plan.hash})
        write_json(root / PLAN, plan.model_dump())
    return plan


def can_register(folder: str, runs: Sequence[PlannedRun]) -> bool:
    """Whether `store_plan` would register these runs."""
    plan = read_plan(folder)
    if plan is None:
        return not any(Path(folder).glob("*.json"))
    return not plan.registered and {run.id for run in runs} <= {run.id for run in plan.runs}


def differences(folder: str, questions: Sequence[Question], runs: Sequence[PlannedRun]) -> list[str]:
    """How the runs of a study differ from the plan that stands with its records, as sentences.

    Args:
        folder: Of the records.
        questions: The primary questions.
        runs: All runs of the study.

    Raises:
        BadInputError: The plan has other questions, or other names of the methods.
    """
    plan = read_plan(folder)
    if plan is None:
        return []
    _check_same_study(folder, plan, questions, runs)
    kind = "registered" if plan.registered else "planned"
    first, asked = {run.id for run in plan.runs if not run.added}, {run.id for run in runs}
    found = []
    if new := len(asked - first):
        date = f"the plan {'registered' if plan.registered else 'stored'} on {plan.created[:10]}"
        found.append(
            f"{counted(new, 'run is', 'runs are')} not in {date}, and will count as added later, "
            "in no verdict"
        )
    if gone := len(first - asked):
        found.append(f"{counted(gone, f'{kind} run is', f'{kind} runs are')} no longer asked for")
    return found


def _check_same_study(
    folder: str, plan: Plan, questions: Sequence[Question], runs: Sequence[PlannedRun]
) -> None:
    if list(questions) != plan.questions:
        raise BadInputError(
            f"{folder} holds the plan of other questions: put the study's questions back, or name another "
            "folder"
        )
    names = {run.id: run.method for run in plan.runs}
    for run in runs:
        # The records of one method would have two names, and count as two methods.
        if run.method != (name := names.get(run.id, run.method)):
            raise BadInputError(
                f"the plan in {folder} calls {name!r} what the study calls {run.method!r}: put the name "
                "back, or name another folder"
            )
