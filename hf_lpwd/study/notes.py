"""What a reader has to know beside the figures: of the runs, and how they deviate from the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hf_lpwd.messages import counted
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


def deviations(
    records: Sequence[Record],
    plan: Plan | None,
    counts: Counter[str],
    baseline: str | None,
    margin: float | None,
) -> Iterator[str]:
    """How records and report deviate from the plan, as sentences."""
    if plan is None:
        yield "No plan was stored with these records: what was planned is taken from the grid that is there."
        return
    if counts["missing"]:
        yield f"{counts['missing']} of {counts['planned']} planned runs have no record."
    if counts["added"]:
        rest = "added after the plan was stored, and"
        one, many = f"run was {rest} does not count.", f"runs were {rest} do not count."
        yield counted(counts["added"], one, many)
    if plan.registered and plan.registered != plan.hash:
        yield "The registered plan was changed after it was registered: its hash does not fit."
    stored = plan.questions[0] if plan.questions else Question()
    if baseline is not None and baseline != stored.to:
        yield f"The report compares to {baseline}; the plan says {stored.to}."
    if margin is not None and margin != stored.margin:
        yield f"The report's margin is {margin:g} points; the plan says {stored.margin:g}."
    early = [r for r in records if r.times.started is not None and r.times.started < plan.created]
    if early:
        yield f"{counted(len(early), 'record is', 'records are')} older than the plan."
