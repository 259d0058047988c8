"""Records -> what a report says: the figures of each method, primary questions, contrasts, controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.study.compare import Comparison, compare, corrected, family, has_runs, test_score
from hf_lpwd.study.plan import DEFAULT_BASELINE, Plan, Question, Side
from hf_lpwd.study.records import Record
from hf_lpwd.study.selection import Robustness, best_epochs_mean, decay_robustness
from hf_lpwd.study.stats import Estimate, interquartile_mean, mean_interval
from hf_lpwd.study.tasks import Method, Setting, Task, make_tasks

NO_DECAY = "no decay"
NOISE_FLOOR = "noise floor"


@dataclass(frozen=True)
class MethodResult:
    """A method on a task.

    Attributes:
        name: The method.
        setting: Chosen on validation: the highest mean accuracy over the seeds that all settings have.
        runs: Seed -> record, at that setting.
        method: All its runs.
        validation: Accuracy at the setting.
        test: The same on test; None if there is no test split.
        paper: Mean of the ten best test accuracies after an epoch, where the study read these.
        mean_rate: Mean decay rate over the decayed parameters, at the setting.
        robustness: Over the decay rates above 0, at the setting's learning rate; None if there are not two.
        remarks: What a reader has to know of it.
    """

    name: str
    setting: Setting
    runs: dict[int, Record]
    method: Method
    validation: Estimate
    test: Estimate | None
    paper: Estimate | None
    mean_rate: float
    robustness: Robustness | None
    remarks: list[str]


@dataclass(frozen=True)
class Study:
    """All that a report says.

    Attributes:
        tasks: What was compared.
        results: Task -> its methods, the baseline first, then by test accuracy.
        primary: Each primary question with its family of comparisons.
        contrasts: Factors, each over all pairs of runs that differ in nothing else; secondary.
        baselines: Baselines from elsewhere against the baseline; secondary.
        controls: By task the positive control and the noise floor.
        pooled: Method -> interquartile mean over tasks; empty for one task.
        counts: ``"planned"``, ``"completed"``, ``"diverged"``, ``"failed"``, ``"missing"``, ``"added"``.
        notes: What a reader has to know, as sentences.
        deviations: From the plan, as sentences.
        plan: As stored with the records.
        baseline: Name of the baseline.
    """

    tasks: list[Task]
    results: dict[str, list[MethodResult]]
    primary: list[tuple[Question, list[Comparison]]]
    contrasts: list[Comparison]
    baselines: list[Comparison]
    controls: dict[str, tuple[Comparison, Comparison]]
    pooled: dict[str, Estimate]
    counts: Counter[str]
    notes: list[str]
    deviations: list[str]
    plan: Plan | None
    baseline: str

    @property
    def primary_comparisons(self) -> list[Comparison]:
        """Those of all primary questions."""
        return [comparison for _, comparisons in self.primary for comparison in comparisons]

    @property
    def unfinished(self) -> bool:
        """Whether planned runs have no record."""
        return self.plan is not None and self.counts["missing"] > 0


def analyse(
    records: Sequence[Record],
    plan: Plan | None = None,
    baseline: str | None = None,
    margin: float | None = None,
    questions: Sequence[Question] | None = None,
) -> Study:
    """Answers the questions of a study.

    Args:
        records: From `load_records`.
        plan: From `read_plan`; None if none was stored.
        baseline: A method, instead of the plan's; default without a plan: AdamW (``"wd uniform"``).
        margin: Points of accuracy that would matter, instead of the plan's.
        questions: Instead of the plan's.

    Raises:
        BadInputError: No run has completed, or a task lacks the baseline that was asked for.
    """
    tasks = make_tasks(records, plan)
    if not any(task.count("completed") + task.count("diverged") for task in tasks):
        raise BadInputError(f"none of the {len(records)} runs has completed")
    explicit = baseline is not None or plan is not None or questions is not None
    questions = _questions(questions or (plan.questions if plan else [Question()]), baseline, margin)
    _check_sides(tasks, questions, explicit)
    chosen = next((q.to for q in questions if isinstance(q.to, str)), DEFAULT_BASELINE)
    counts = _count(tasks, records, plan)
    primary = _primary(questions, tasks)
    if plan is not None and counts["missing"]:
        reason = f"{counts['missing']} of the {counts['planned']} planned runs are missing"
        primary = [(q, [replace(c, withheld=c.withheld or reason) for c in cs]) for q, cs in primary]
    first = questions[0]
    asked = {c.name for _, comparisons in primary for c in comparisons}
    baselines = [
        compare(task, name, Question(to=chosen, margin=first.margin))
        for task in tasks
        for name in task.methods
        if name not in (chosen, NO_DECAY, NOISE_FLOOR) and name not in asked
    ]
    results = {task.name: _results(task, chosen) for task in tasks}
    return Study(
        tasks=tasks,
        results=results,
        primary=primary,
        contrasts=corrected(list(_contrasts(tasks, first.margin))),
        baselines=corrected(baselines),
        controls={task.name: _controls(task, chosen, first.margin) for task in tasks},
        pooled=_pooled(results),
        counts=counts,
        notes=list(_notes(tasks, results)),
        deviations=list(_deviations(records, plan, counts, baseline, margin)),
        plan=plan,
        baseline=chosen,
    )


def _questions(questions: Sequence[Question], baseline: str | None, margin: float | None) -> list[Question]:
    changes: dict[str, Any] = {} if baseline is None else {"to": baseline}
    changes |= {} if margin is None else {"margin": margin}
    return [question.model_copy(update=changes) for question in questions]


def _primary(questions: Sequence[Question], tasks: Sequence[Task]) -> list[tuple[Question, list[Comparison]]]:
    """Each question with its comparisons; those of questions of one name are corrected together."""
    made = [(question, family(question, tasks, _grid_methods)) for question in questions]
    for name in {question.name for question, _ in made if question.name}:
        places = [i for i, (question, _) in enumerate(made) if question.name == name]
        together = iter(corrected([c for i in places for c in made[i][1]]))
        for i in places:
            made[i] = (made[i][0], [next(together) for _ in made[i][1]])
    return made


def _check_sides(tasks: Sequence[Task], questions: Sequence[Question], explicit: bool) -> None:
    """Refuses a baseline that was asked for and that a task lacks."""
    for question in questions:
        for task in tasks:
            names = sorted(task.methods)
            asked = any(has_runs(task, side) for side in question.compare or _grid_methods(task))
            if explicit and asked and isinstance(question.to, str) and question.to not in names:
                raise BadInputError(
                    f"{unknown('baseline', question.to, names)} (the methods on {task.name} are "
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
        counts["missing"] = sum(len(task.missing) for task in tasks)
        counts["planned"] = done + counts["missing"]
    counts["added"] = len(records) - done
    return counts


def _results(task: Task, baseline: str) -> list[MethodResult]:
    found = [_result(task, method) for method in task.methods.values()]
    made = [result for result in found if result is not None]
    return sorted(made, key=lambda r: (r.name != baseline, -(r.test or r.validation).value, r.name))


def _result(task: Task, method: Method) -> MethodResult | None:
    usable = method.usable()
    if not usable:
        return None
    seeds = method.common_seeds()
    setting = method.best(seeds) if seeds else max(usable, key=lambda one: len(usable[one]))
    runs = dict(sorted(usable[setting].items()))
    tests = [score for run in runs.values() if (score := run.score("test")) is not None]
    papers = [
        best_epochs_mean(run.test_accuracy_after_epochs)
        for run in runs.values()
        if run.test_accuracy_after_epochs
    ]
    layers = next((run.layers for run in runs.values() if run.layers), [])
    decayed = [layer.decayed for layer in layers]
    return MethodResult(
        name=method.name,
        setting=setting,
        runs=runs,
        method=method,
        validation=_mean([run.score("validation") for run in runs.values()]),
        test=_mean(tests) if task.has_test and tests else None,
        paper=_mean(papers) if papers else None,
        mean_rate=float(np.average([layer.rate for layer in layers], weights=decayed))
        if any(decayed)
        else 0.0,
        robustness=_robustness(method, setting),
        remarks=list(_remarks(method, setting)),
    )


def _mean(scores: Sequence[float | None]) -> Estimate:
    return mean_interval([score for score in scores if score is not None]).clipped()


def _remarks(method: Method, setting: Setting) -> Iterator[str]:
    runs = [run for row in method.grid.values() for run in row.values()]
    for outcome in ("diverged", "failed"):
        number = sum(run is not None and run.outcome == outcome for run in runs)
        if number:
            yield f"{number} of {len(runs)} runs {outcome}"
    missing = sum(run is None for run in runs)
    if missing:
        yield f"{missing} of {len(runs)} runs missing"
    for axis, value in zip(("decay rate", "learning rate"), setting, strict=True):
        position = 0 if axis == "decay rate" else 1
        values = sorted({rate for one in method.grid if (rate := one[position]) is not None})
        if len(values) > 1 and value in (values[0], values[-1]):
            yield f"the best {axis} is the {'lowest' if value == values[0] else 'highest'} of the grid"


def decay_curve(method: Method, learning_rate: float | None) -> dict[float, dict[int, Record]]:
    """Returns decay rate -> seed -> record at one learning rate, for the rates above 0."""
    return {
        setting.decay: runs
        for setting, runs in method.usable().items()
        if setting.learning_rate == learning_rate and setting.decay
    }


def _robustness(method: Method, setting: Setting) -> Robustness | None:
    curve = decay_curve(method, setting.learning_rate)
    seeds = sorted(set.intersection(*(set(runs) for runs in curve.values()))) if curve else []
    if len(curve) < 2 or not seeds:
        return None
    return decay_robustness(
        [[test_score(runs[seed]) for runs in curve.values()] for seed in seeds], list(curve)
    )


def _contrasts(tasks: Sequence[Task], margin: float) -> Iterator[Comparison]:
    """Timing, schedule at equal budget, and budget, each over all pairs of runs that differ in it alone."""
    schedules = sorted(
        {
            str(r.settings.get("layer_schedule"))
            for t in tasks
            for r in t.records
            if r.settings.get("layer_schedule")
        }
        - {"uniform"}
    )
    sides: list[tuple[Side, Side]] = [
        ({"decay_timing": timing}, {"decay_timing": "wd"}) for timing in ("l2", "rwd", "pwd")
    ]
    for schedule in schedules:
        matched = {"layer_schedule": schedule, "match_decay_budget": True}
        sides.append((matched, {"layer_schedule": "uniform", "match_decay_budget": False}))
        sides.append(({**matched, "match_decay_budget": False}, matched))
    for task in tasks:
        for side, to in sides:
            made = compare(task, side, Question(compare=[side], to=to, at="equal", margin=margin))
            if made.paired is not None:
                yield made
        if {"linear budget", "wd linear"} <= task.methods.keys():
            yield compare(task, "wd linear", Question(to="linear budget", at="equal", margin=margin))


def _controls(task: Task, baseline: str, margin: float) -> tuple[Comparison, Comparison]:
    """Tuned decay against none, which a study should see; a method against itself, perturbed: the noise."""
    return (
        corrected([compare(task, baseline, Question(to=NO_DECAY, margin=margin))])[0],
        corrected([compare(task, NOISE_FLOOR, Question(to=baseline, at="equal", margin=margin))])[0],
    )


def _pooled(results: Mapping[str, Sequence[MethodResult]]) -> dict[str, Estimate]:
    if len(results) < 2:
        return {}
    by_task = [{result.name: result for result in found} for found in results.values()]
    shared = [name for name in by_task[0] if all(name in found for found in by_task)]
    return {
        name: interquartile_mean([_scores(found[name]) for found in by_task]).clipped() for name in shared
    }


def _scores(result: MethodResult) -> Any:
    scores = [run.score("test" if result.test else "validation") for run in result.runs.values()]
    return np.array([score for score in scores if score is not None])


def _notes(tasks: Sequence[Task], results: Mapping[str, Sequence[MethodResult]]) -> Iterator[str]:
    for task in tasks:
        where = f" on {task.name}" if len(tasks) > 1 else ""
        if not task.has_test:
            yield f"No test split was read{where}: there are no verdicts."
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
    for name in ("device", "device_name", "threads", "commit"):
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


def _deviations(
    records: Sequence[Record],
    plan: Plan | None,
    counts: Counter[str],
    baseline: str | None,
    margin: float | None,
) -> Iterator[str]:
    if plan is None:
        yield "No plan was stored with these records: what was planned is taken from the grid that is there."
        return
    if counts["missing"]:
        yield f"{counts['missing']} of {counts['planned']} planned runs have no record."
    if counts["added"]:
        yield f"{counts['added']} runs were added after the plan was stored, and do not count."
    if plan.registered and plan.registered != plan.hash:
        yield "The registered plan was changed after it was registered: its hash does not fit."
    stored = plan.questions[0] if plan.questions else Question()
    if baseline is not None and baseline != stored.to:
        yield f"The report compares to {baseline}; the plan says {stored.to}."
    if margin is not None and margin != stored.margin:
        yield f"The report's margin is {margin:g} points; the plan says {stored.margin:g}."
    early = [r for r in records if r.times.started is not None and r.times.started < plan.created]
    if early:
        yield f"{len(early)} records are older than the plan."
