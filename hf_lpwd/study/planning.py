"""Before the first run of a study: its file, what it takes on this machine, what it can show."""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError, counted
from hf_lpwd.study.compare import fits, of_the_task
from hf_lpwd.study.comparison import side_name
from hf_lpwd.study.config import RunSpec, StudyFile
from hf_lpwd.study.plan import Question, Side
from hf_lpwd.study.stats import MIN_SEEDS, smallest_shift
from hf_lpwd.study.sweep import duration
from hf_lpwd.study.tasks import setting_of, task_key

#: Fraction of test images on which two good runs of one method are taken to disagree, before any was made.
DISAGREEMENT = 0.1
MOST_SEEDS = 20

_TRIAL_STEPS = 12
_WARM_UP = 4
_FEWEST_RATES = 3


@dataclass(frozen=True)
class Trial:
    """What a few steps tell of a whole run: its seconds, the number of test images, its steps.

    `data` is the name of the dataset, if its test images are cut from the training images.
    """

    seconds: float
    test_images: int
    steps: int
    data: str | None = None


@dataclass(frozen=True)
class Choice:
    """A grid and seeds that fit a time: decay rates, number of seeds, number of runs."""

    decays: list[float]
    num_seeds: int
    num_runs: int


def check_new(path: str) -> None:
    """Raises a BadInputError if a file is there: a study with its comments would be lost."""
    if Path(path).exists():
        raise BadInputError(f"{path} is there already: name another file")


def write_study(path: str, flags: Mapping[str, Any]) -> None:
    """Writes the commented example of a study with these flags under `train`.

    Raises:
        BadInputError: The file is there.
    """
    check_new(path)
    example = resources.files("hf_lpwd.study").joinpath("example.yaml").read_text("utf-8").splitlines()
    # A flag that is given takes the place of the comment about it.
    lines = [line for line in example if line.partition(":")[0].removeprefix("  # ") not in flags]
    start = lines.index("train:") + 1
    given = [f"  {name}: {json.dumps(value)}" for name, value in flags.items()]
    write_bytes(path, "\n".join([*lines[:start], *given, *lines[start:], ""]).encode())


def one_run_a_task(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The first run of each task: of each dataset and model."""
    found: dict[str, RunSpec] = {}
    for run in runs:
        found.setdefault(task_key(run.settings), run)
    return list(found.values())


def check_run(run: RunSpec) -> str | None:
    """Loads data and model of a run, and checks its rates; trains nothing.

    Raises:
        BadInputError: What is wrong with them.
    """
    from hf_lpwd.study.quiet_run import prepared

    try:
        with prepared(run) as (made, _):
            cut = _cut_from_train(made)
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from None
    return None if cut is None else test_split_text(cut, len(made.images["test"]))


def timed_trial(run: RunSpec) -> Trial:
    """Times a few steps and an evaluation of a run, with one thread as in a study, and reads no test image.

    Raises:
        BadInputError: Data, model or rates are wrong.
    """
    from hf_lpwd.study.callbacks import StepTimes
    from hf_lpwd.study.quiet_run import prepared, quiet_trainer
    from hf_lpwd.vision.run_facts import num_evaluations

    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        with prepared(run) as (made, args):
            loaded = time.monotonic() - started
            steps = made.facts.steps
            evaluations = math.ceil(num_evaluations(made.facts, args))
            args.max_steps, args.warmup_steps, args.load_best_model_at_end = _TRIAL_STEPS, 0, False
            args.eval_strategy, args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
            times = StepTimes()
            trainer = quiet_trainer(made, args, [times])
            trainer.train()
            started = time.monotonic()
            trainer.evaluate(made.images["validation"])
            evaluation = time.monotonic() - started
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from None
    step = statistics.median(times.seconds[_WARM_UP:] or times.seconds)
    test_images = len(made.images["test"])
    test = evaluation * test_images / len(made.images["validation"])
    seconds = loaded + steps * step + (evaluations + 1) * evaluation + test
    return Trial(seconds, test_images, steps, _cut_from_train(made))


def _cut_from_train(run: Any) -> str | None:
    sources = run.splits.sources
    return run.splits.name if sources["test"] == sources["train"] else None


def test_split_text(data: str, images: int) -> str:
    """Says that the test split was cut from the training images."""
    return (
        f"{data} has no test split: {images:,} of its training images, of all classes, are held out as one, "
        "the same for every run (test_split under train sets how many)"
    )


def describe(
    study: StudyFile, trials: Sequence[Trial], side_by_side: int, std: float | None
) -> Iterator[str]:
    """What a study takes and can show, line by line.

    Args:
        study: The study.
        trials: One for each task, in the order of `one_run_a_task`.
        side_by_side: Runs at a time.
        std: Standard deviation of the paired differences in points of accuracy, if known.
    """
    tasks = one_run_a_task(study.runs)
    seeds = sorted({run.settings["seed"] for run in study.runs})
    methods = Counter(run.method for run in study.runs)
    runs = counted(len(study.runs), "run")
    yield f"{runs} on {counted(len(tasks), 'task')}, {counted(len(seeds), 'seed')}:"
    for method, number in methods.items():
        settings = number // len(seeds) // len(tasks)
        yield f"  {method}: {counted(number, 'run')}, {counted(settings, 'setting')} to choose from"
    grid = {run.method for run in study.runs if "peer" not in run.settings}
    tried = {number for method, number in methods.items() if method in grid}
    if len(tried) > 1:
        yield "  the methods do not choose from equally many settings: the report counts p-values k times"
    total = 0.0
    for trial, task in zip(trials, tasks, strict=True):
        number = sum(task_key(run.settings) == task_key(task.settings) for run in study.runs)
        total += number * trial.seconds
        about = f"{trial.steps:,} steps, {trial.test_images:,} test images"
        yield f"a run takes about {duration(trial.seconds)} ({about})"
    cut = (test_split_text(t.data, t.test_images) for t in trials if t.data is not None)
    yield from dict.fromkeys(cut)
    yield f"in all about {duration(total / side_by_side)} with {side_by_side} side by side"
    if len(seeds) < MIN_SEEDS:
        yield f"{counted(len(seeds), 'seed')}: with fewer than {MIN_SEEDS} there is no verdict"
        return
    compared = [num_comparisons(question, study.runs) for question in study.questions]
    for number, question in enumerate(study.questions, 1):
        # Questions of one name are corrected together.
        family = [
            tests
            for other, tests in zip(study.questions, compared, strict=True)
            if other is question or (question.name and other.name == question.name)
        ]
        tests = max(1, sum(family))
        together = f" of {tests} that are corrected together" if len(family) > 1 else ""
        images = min(trial.test_images for trial in trials)
        spread = 100.0 * math.sqrt(DISAGREEMENT / images) if std is None else std
        points = detectable_points(len(seeds), tests, spread)
        source = f"runs that disagree on {DISAGREEMENT:.0%} of the test images" if std is None else "as given"
        yield (
            f"question {number}: {counted(compared[number - 1], 'comparison')}{together} with "
            f"{side_name(question.to)}, "
            f"margin {question.margin:g} points; a true difference of {points:.2g} points is found with a "
            f"probability of 80%, if paired differences vary by {spread:.2g} points ({source})"
        )


def num_comparisons(question: Question, runs: Sequence[RunSpec]) -> int:
    """How many comparisons a question makes: of each side on each task, and the means over tasks."""
    joining = of_the_task(question)
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        shared = {name: value for name, value in run.settings.items() if name not in joining}
        groups.setdefault(task_key(shared), []).append(run)
    grid = list(dict.fromkeys(run.method for run in runs if "peer" not in run.settings))
    sides: list[Side] = list(question.compare or grid)
    tasks = [
        sum(any(fits(run, side) for run in group) for group in groups.values())
        for side in sides
        if side != question.to
    ]
    return sum(tasks) + (sum(number > 1 for number in tasks) if question.over_tasks else 0)


def detectable_points(num_seeds: int, num_tests: int, std: float) -> float:
    """The smallest true difference that a study finds with 80% power, in the unit of `std`."""
    return std * smallest_shift(num_seeds, num_tests) / math.sqrt(num_seeds)


def fit_budget(study: StudyFile, seconds: float, run_seconds: float, side_by_side: int) -> Choice:
    """Chooses decay rates and seeds for a time: five seeds and three rates, then all rates, then more seeds.

    Args:
        study: The study, whose decay rates are the candidates.
        seconds: The time.
        run_seconds: Of one run.
        side_by_side: Runs at a time.

    Raises:
        BadInputError: Not even five seeds with one rate fit.
    """
    most = int(seconds * side_by_side / run_seconds)
    grid = [run for run in study.runs if "peer" not in run.settings]
    decays = sorted({rate for run in grid if (rate := setting_of(run.settings).decay) is not None})
    # Baselines may have rates of their own, which stay.
    first = study.runs[0].settings["seed"]
    of_a_seed = [setting_of(run.settings).decay for run in study.runs if run.settings["seed"] == first]
    fewest = min(_FEWEST_RATES, len(decays))
    for number in range(len(decays), fewest - 1, -1):
        # Evenly spread, the ends among them.
        chosen = [decays[round(i)] for i in np.linspace(0, len(decays) - 1, number)]
        per_seed = sum(rate in chosen or rate not in decays for rate in of_a_seed)
        seeds = min(most // per_seed, MOST_SEEDS)
        if seeds >= MIN_SEEDS:
            return Choice(chosen, seeds, seeds * per_seed)
    needed = MIN_SEEDS * per_seed
    raise BadInputError(
        f"the budget has time for {counted(most, 'run')}, but {MIN_SEEDS} seeds take {needed}, about "
        f"{duration(needed * run_seconds / side_by_side)}: give more time, or shorten the runs"
    )


def parse_duration(text: str) -> float:
    """Reads ``"2h"``, ``"90min"``, ``"1d"``, ``"30s"`` as seconds.

    Raises:
        BadInputError: It is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text.strip())
    if found is None or float(found[1]) == 0.0:
        raise BadInputError(f"a budget is a time such as 90min, 2h or 1d, not {text!r}")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[found[2]]
