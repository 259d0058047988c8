"""Records -> what a report says: the figures of each method, primary questions, contrasts, controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.study.compare import compare, family, has_runs, joined
from hf_lpwd.study.comparison import Comparison, corrected, side_name
from hf_lpwd.study.notes import deviations, notes
from hf_lpwd.study.plan import DEFAULT_BASELINE, Plan, Question, Side, joined_plan
from hf_lpwd.study.record import Record, test_score
from hf_lpwd.study.results import MethodResult, has_test, results_of
from hf_lpwd.study.stats import Array, Estimate, interquartile_mean
from hf_lpwd.study.tasks import Task, make_tasks, shared_seeds

NO_DECAY = "no decay"
NOISE_FLOOR = "noise floor"


@dataclass(frozen=True)
class Study:
    """All that a report says.

    Attributes:
        tasks: What was compared.
        results: Task -> its methods, the baseline first, then by test accuracy.
        primary: Each primary question with its family of comparisons.
        secondary: The comparisons of questions without a verdict.
        contrasts: Factors, each over all pairs of runs that differ in nothing else; secondary.
        baselines: Baselines from elsewhere against the baseline; secondary.
        controls: By task the positive control and the noise floor.
        scores: Method -> for each task with a test split the test accuracies of its runs; empty for one.
        counts: ``"planned"``, ``"completed"``, ``"diverged"``, ``"failed"``, ``"missing"``, ``"added"``.
        notes: What a reader has to know, as sentences.
        deviations: From the plan, as sentences.
        plans: File -> its plan, as stored with the records.
        baseline: Name of the baseline.
    """

    tasks: list[Task]
    results: dict[str, list[MethodResult]]
    primary: list[tuple[Question, list[Comparison]]]
    secondary: list[Comparison]
    contrasts: list[Comparison]
    baselines: list[Comparison]
    controls: dict[str, tuple[Comparison, ...]]
    scores: dict[str, list[Array]]
    counts: Counter[str]
    notes: list[str]
    deviations: list[str]
    plans: dict[str, Plan]
    baseline: str

    @property
    def pooled(self) -> dict[str, Estimate]:
        """Method -> interquartile mean over tasks; empty for one task."""
        return {name: interquartile_mean(scores).clipped() for name, scores in self.scores.items()}

    @property
    def primary_comparisons(self) -> list[Comparison]:
        """Those of all primary questions."""
        return [comparison for _, comparisons in self.primary for comparison in comparisons]


def analyse(
    records: Sequence[Record],
    plan: Plan | Mapping[str, Plan | None] | None = None,
    baseline: str | None = None,
    margin: float | None = None,
    questions: Sequence[Question] | None = None,
    complete_seeds: bool = False,
) -> Study:
    """Answers the questions of a study.

    Args:
        records: From `load_records`.
        plan: From `read_plan`, None if none was stored; of records of several files the plan of each.
        baseline: A method, instead of the plan's, but not instead of what `questions` name; default without
            a plan: AdamW (``"wd uniform"``).
        margin: Points of accuracy that would matter, instead of the plan's.
        questions: Instead of the plan's.
        complete_seeds: Count only the seeds that all methods of a task have.

    Raises:
        BadInputError: No run has completed, the files' plans have different questions, or a task lacks the
            baseline that was asked for.
    """
    plans = plan if isinstance(plan, Mapping) else {"": plan}
    plan = joined_plan(plans, records, questions)
    tasks = make_tasks(records, plan)
    if all(record.outcome == "failed" for task in tasks for record in task.records):
        raise BadInputError(f"none of the {len(records)} runs has completed")
    asked = _questions(questions or (plan.questions if plan else [Question()]), questions, baseline, margin)
    if baseline is not None or plan is not None or questions is not None:
        _check_sides(tasks, asked, baseline)
    chosen = baseline or next((q.to for q in asked if isinstance(q.to, str)), DEFAULT_BASELINE)
    counts = _count(tasks, records, plan)
    said: list[str] = []
    if complete_seeds:
        tasks = [complete for task in tasks if (complete := _complete(task, said)) is not None]
        if not tasks:
            raise BadInputError("no task has a seed that all its methods have: leave out complete_seeds")
    made = _answered(asked, tasks)
    primary = [(question, found) for question, found in made if question.verdict]
    said += _not_asked(asked, tasks)
    missing = None
    if plan is not None and counts["missing"]:
        missing = f"{counts['missing']} of the {counts['planned']} planned runs are missing"

    def held(comparisons: Iterable[Comparison]) -> list[Comparison]:
        return [replace(c, withheld=c.withheld or missing) for c in comparisons]

    margin_of_first = asked[0].margin
    results = {task.name: results_of(task, chosen) for task in tasks}
    return Study(
        tasks=tasks,
        results=results,
        primary=[(question, held(found)) for question, found in primary],
        secondary=[c for question, found in made if not question.verdict for c in found],
        contrasts=held(_contrasts(tasks, margin_of_first)),
        baselines=held(_baselines(tasks, chosen, made, margin_of_first)),
        controls={task.name: tuple(held(_controls(task, chosen, margin_of_first))) for task in tasks},
        scores=_scores(results),
        counts=counts,
        notes=[*said, *notes(tasks, results)],
        deviations=list(deviations(records, plans, counts, asked)),
        plans={file: one for file, one in plans.items() if one is not None},
        baseline=chosen,
    )


def _questions(
    asked: Sequence[Question], given: Sequence[Question] | None, baseline: str | None, margin: float | None
) -> list[Question]:
    made = []
    for question in asked:
        changes: dict[str, Any] = {} if margin is None else {"margin": margin}
        if baseline is not None and not (given and "to" in question.model_fields_set):
            changes["to"] = baseline
        made.append(question.model_copy(update=changes))
    return made


def _complete(task: Task, said: list[str]) -> Task | None:
    """The task with the seeds that all its methods have; None if there is none."""
    seeds = shared_seeds(method.common_seeds() for method in task.methods.values() if method.usable)
    if not seeds:
        said.append(f"{task.name} is left out: its methods have no seed in common.")
        return None
    alone = sorted({record.seed for record in task.records}.difference(seeds))
    if alone:
        said.append(
            f"Seeds {', '.join(map(str, alone))} are left out on {task.name}: not all its methods have them."
        )
    methods = {name: method.of_seeds(seeds) for name, method in task.methods.items()}
    for name, method in task.methods.items():
        for setting in method.grid.keys() - method.usable.keys() if method.usable else ():
            said.append(f"{name} at {setting} is left out on {task.name}: it lacks most seeds.")
    kept = {run.id for method in methods.values() for run in method.runs if run is not None}
    return Task(task.name, methods, [record for record in task.records if record.id in kept])


def _not_asked(questions: Sequence[Question], tasks: Sequence[Task]) -> list[str]:
    """Says which sides of questions have no runs."""
    lacking = [
        f"{side_name(side)} on {task.name}"
        for task in tasks
        for side in {side_name(side): side for question in questions for side in question.compare}.values()
        if not has_runs(task, side)
    ]
    return [f"Asked for, but without runs: {'; '.join(lacking)}."] if lacking else []


def _answered(
    questions: Sequence[Question], tasks: Sequence[Task]
) -> list[tuple[Question, list[Comparison]]]:
    """Each question with its comparisons; those of questions of one name are corrected together."""
    made = [(question, family(question, tasks, _grid_methods)) for question in questions]
    for name in {question.name for question, _ in made if question.name}:
        places = [i for i, (question, _) in enumerate(made) if question.name == name]
        together = iter(corrected([c for i in places for c in made[i][1]]))
        for i in places:
            made[i] = (made[i][0], [next(together) for _ in made[i][1]])
    return made


def _check_sides(tasks: Sequence[Task], questions: Sequence[Question], baseline: str | None) -> None:
    """Refuses a baseline that no task has, and the one given for all questions where a task lacks it."""
    for question in questions:
        asked = [
            task
            for task in joined(tasks, question)
            if any(has_runs(task, side) for side in question.compare or _grid_methods(task))
        ]
        lacking = [task for task in asked if isinstance(question.to, str) and not has_runs(task, question.to)]
        if lacking and (len(lacking) == len(asked) or question.to == baseline):
            names = sorted({run.method for run in lacking[0].records})
            raise BadInputError(
                f"{unknown('baseline', question.to, names)} (the methods on {lacking[0].name} are "
                f"{', '.join(names)})"
            )


def _grid_methods(task: Task) -> list[Side]:
    return [name for name, method in task.methods.items() if not method.is_control]


def _count(tasks: Sequence[Task], records: Sequence[Record], plan: Plan | None) -> Counter[str]:
    counts: Counter[str] = Counter(dict.fromkeys(("completed", "diverged", "failed"), 0))
    for task in tasks:
        counts.update(record.outcome for record in task.records)
    done = sum(counts.values())
    if plan:
        counts["planned"] = sum(not run.added for run in plan.runs)
        counts["missing"] = counts["planned"] - done
    else:
        counts["missing"] = sum(task.missing for task in tasks)
        counts["planned"] = done + counts["missing"]
    counts["added"] = len(records) - done
    return counts


def _baselines(
    tasks: Sequence[Task],
    baseline: str,
    answered: Sequence[tuple[Question, Sequence[Comparison]]],
    margin: float,
) -> list[Comparison]:
    """The methods that no question asks for, against the baseline."""
    shown = {c.name for _, comparisons in answered for c in comparisons} | {baseline, NO_DECAY, NOISE_FLOOR}
    rest = dict.fromkeys(name for task in tasks for name in task.methods if name not in shown)
    question = Question(compare=list(rest), to=baseline, margin=margin)
    return family(question, tasks, lambda task: [])


def _contrasts(tasks: Sequence[Task], margin: float) -> list[Comparison]:
    """Timing, schedule at equal budget, and budget, each over all pairs of runs that differ in it alone."""
    schedules = {str(record.settings.get("layer_schedule")) for task in tasks for record in task.records}
    sides: list[tuple[Side, Side]] = [
        ({"decay_timing": timing}, {"decay_timing": "wd"}) for timing in ("l2", "rwd", "pwd")
    ]
    for schedule in sorted(schedules - {"uniform", "None"}):
        matched = {"layer_schedule": schedule, "match_decay_budget": True}
        sides.append((matched, {"layer_schedule": "uniform", "match_decay_budget": False}))
        sides.append(({**matched, "match_decay_budget": False}, matched))
    sides.append(("wd linear", "linear budget"))
    questions = [Question(compare=[side], to=to, at="equal", margin=margin) for side, to in sides]
    made = [compare(task, q.compare[0], q) for task in tasks for q in questions]
    return corrected([comparison for comparison in made if comparison.paired is not None])


def _controls(task: Task, baseline: str, margin: float) -> tuple[Comparison, Comparison]:
    """Tuned decay against none, which a study should see; a method against itself, perturbed: the noise."""
    tuned = compare(task, baseline, Question(to=NO_DECAY, margin=margin))
    noise = compare(task, NOISE_FLOOR, Question(to=baseline, at="equal", margin=margin))
    return corrected([tuned])[0], corrected([noise])[0]


def _scores(results: Mapping[str, Sequence[MethodResult]]) -> dict[str, list[Array]]:
    # Without a test split there are no test accuracies to pool.
    tested = list(filter(has_test, results.values()))
    if len(tested) < 2:
        return {}
    by_task = [{result.name: result for result in found} for found in tested]
    shared = [name for name in by_task[0] if all(name in found for found in by_task)]
    return {
        name: [np.array([test_score(run) for run in found[name].runs.values()]) for found in by_task]
        for name in shared
    }
