"""The study's answer in words: what to use, why, what was ruled out, what could not be decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from hf_lpwd.messages import counted
from hf_lpwd.study.analysis import Study
from hf_lpwd.study.comparison import OVER_TASKS, Comparison, side_name
from hf_lpwd.study.plan import Question
from hf_lpwd.study.stats import CONFIDENCE, Estimate, Verdict
from hf_lpwd.study.tasks import Task


@dataclass(frozen=True)
class Answer:
    """The answer for one task.

    Attributes:
        task: Its name.
        compared: Model, data, sizes, length and device of the runs.
        headline: "Use X ...", one sentence.
        sentences: Verdict -> its comparisons in words.
    """

    task: str
    compared: str
    headline: str
    sentences: dict[Verdict, list[str]]


def answers(study: Study) -> list[Answer]:
    """One answer for each task, and for the mean over them, from the primary questions alone."""
    by_task: dict[str, list[Comparison]] = {task.name: [] for task in study.tasks}
    for comparison in study.primary_comparisons:
        by_task.setdefault(comparison.task, []).append(comparison)
    tasks = {task.name: task for task in study.tasks}
    found = []
    for name, comparisons in by_task.items():
        sentences = {
            verdict: [sentence(c) for c in comparisons if c.verdict == verdict]
            for verdict in get_args(Verdict)
        }
        # The mean over tasks has no runs of its own, and no setting to recommend.
        texts = (compared(tasks[name]), _headline(study, name, comparisons)) if name in tasks else ("", "")
        found.append(Answer(name, *texts, sentences))
    return found


def _headline(study: Study, task: str, mine: Sequence[Comparison]) -> str:
    baseline = study.baseline
    results = {result.name: result for result in study.results[task]}
    if not mine:
        return "Nothing was compared: only one method was run, or the baseline is not among them."
    counts = study.counts
    if study.plans and counts["missing"]:
        done = counts["planned"] - counts["missing"]
        return f"No answer yet: {done} of {counts['planned']} planned runs are done."
    if all(c.withheld for c in mine):
        return f"No answer: {mine[0].withheld}."
    asked = [c for c in mine if c.to == baseline and c.question.measure == "accuracy"]
    better = sorted((c for c in asked if c.verdict == "better"), key=lambda c: -c.difference.value)
    # The setting is that of the comparison, which may have fewer seeds than the method.
    at_best = [c for c in better if c.question.at == "best" and c.settings]
    if at_best:
        return f"Use {at_best[0].name} ({at_best[0].settings[0]}): it is better than {baseline}."
    over_all = f"{better[0].name} is better than {baseline} over all equal settings" if better else ""
    if over_all and not any(c.question.at == "best" for c in asked):
        return f"{over_all}; no question compares each at its best setting."
    chosen = f" ({results[baseline].setting})" if baseline in results else ""
    undecided = sum(c.verdict == "undecided" for c in mine)
    rest = f"; {undecided} of {counted(len(mine), 'comparison')} could not be decided" if undecided else ""
    also = f" But {over_all}." if over_all else ""
    return f"Use {baseline}{chosen}: nothing was shown to be better{rest}.{also}"


def compared(task: Task) -> str:
    """What the runs of a task were: sizes, epochs, batch and device, as far as the records tell."""
    run = next(record for record in task.records)
    settings, parts = run.settings, []
    if run.layers:
        parts.append(f"{sum(layer.parameters for layer in run.layers):,} parameters")
    if run.data:
        sizes = [f"{size:,} {split}" for split, size in run.data.sizes.items()]
        parts.append(f"{', '.join(sizes)} images of {run.data.num_classes} classes")
    elif settings.get("max_train_samples"):
        parts.append(f"at most {settings.get('max_train_samples'):,} training images")
    if run.epochs:
        parts.append(f"{run.epochs[-1].step:,} steps, {run.epochs[-1].epoch:.3g} epochs")
    if settings.get("per_device_train_batch_size"):
        parts.append(f"batches of {settings.get('per_device_train_batch_size')}")
    if run.environment:
        parts.append(f"{run.environment.device_name}, {counted(run.environment.threads, 'thread')} a run")
    number = len({record.seed for record in task.records})
    parts.append(counted(number, "seed"))
    return f"{task.name}: {'; '.join(parts)}."


def sentence(c: Comparison) -> str:
    """Says in words how one side compares with the other."""
    margin = f"{100.0 * c.margin:g} points"
    what = "" if c.question.measure == "accuracy" else " in the range over the decay rates"
    if c.paired is None:
        return f"{c.name} against {c.to}: no verdict, {c.withheld}."
    equal = " over all equal settings" if c.question.at == "equal" else ""
    on = "" if c.split == "test" else f" of {c.split} accuracy"
    numbers = f"{points(c.difference)} points{on}, {counted(c.paired.num_seeds, 'seed')}{equal}"
    if c.withheld:
        return f"{c.name} against {c.to}: no verdict, {c.withheld} ({numbers})."
    # The mean over tasks says so where a task or a seed does not count.
    end = f" This is the {'; '.join(c.left_out)}." if c.task == OVER_TASKS and len(c.left_out) > 1 else ""
    if c.verdict == "equivalent":
        text = (
            f"{c.name} is equivalent to {c.to}{what} within {margin}: {numbers}, {p_value(c.p_equivalence)}."
        )
        if c.p_difference <= 1.0 - CONFIDENCE:
            text += f" There is a difference, {p_value(c.p_difference)}, but one smaller than the margin."
        return text + end
    if c.verdict == "undecided":
        return (
            f"{c.name} against {c.to}{what}: undecided, {numbers}. These runs could have shown a difference "
            f"of {100.0 * c.detectable:.2g} points (at 80% power).{end}"
        )
    text = f"{c.name} is {c.verdict} than {c.to}{what}: {numbers}, {p_value(c.p_difference)}."
    images = c.over_images
    if images is not None and images.low <= 0.0 <= images.high:
        text += f" Over other test images of this kind it may be none: {points(images)}."
    return text + end


def question_names(questions: Sequence[Question]) -> list[str]:
    """What questions are called; those of one name are one family."""
    several = len(questions) > 1
    return [one.name or (f"Question {i}" if several else "Question") for i, one in enumerate(questions, 1)]


def question_text(name: str, question: Question) -> str:
    """A primary question as a sentence."""
    sides = ", ".join(map(side_name, question.compare)) or "each method of the grid"
    how = "each at its best setting on validation" if question.at == "best" else "over all equal settings"
    what = (
        "test accuracy" if question.measure == "accuracy" else "range of test accuracy over the decay rates"
    )
    to = side_name(question.to)
    mean = " Also by the mean over the tasks." if question.over_tasks else ""
    return f"{name}: Is {sides} better than {to} in {what}, {how}?{mean} Margin: {question.margin:g} points."


def points(estimate: Estimate) -> str:
    """A difference with its interval, in points of accuracy."""
    value, low, high = (f"{100.0 * one:+.2f}" for one in (estimate.value, estimate.low, estimate.high))
    return value if "nan" in low else f"{value} ({CONFIDENCE:.0%} interval {low} to {high})"


def p_value(p: float) -> str:
    """A corrected p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
