"""`hf-lpwd card`: the card of a run, with means and intervals over the same run with other seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lpwd.files import RECORD
from hf_lpwd.messages import OneLineParser, refuse
from hf_lpwd.vision.hub.card import CARD, FACTS, METRICS, model_card, write_card

if TYPE_CHECKING:
    import argparse

# Of a card's facts, those in which runs that are put together must agree.
_ALIKE = ("sizes", "validation_chose")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended, as its folder tells: what the card says, and all settings."""

    folder: Path
    facts: dict[str, Any]
    settings: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.settings["seed"]

    @property
    def alike(self) -> dict[str, Any]:
        """All that has to be equal in runs that differ in the seed alone."""
        settings = {name: value for name, value in self.settings.items() if name != "seed"}
        versions = {f"version of {name}": value for name, value in self.facts["versions"].items()}
        metrics = {split: sorted(values) for split, values in self.facts["metrics"].items()}
        return {**settings, **{name: self.facts[name] for name in _ALIKE}, "metrics": metrics, **versions}


def read_run(folder: Path) -> FinishedRun:
    """Reads the folder of a run of ``hf-lpwd train``.

    Raises:
        ValueError: It holds none, or one that has not ended.
    """
    if not (folder / RECORD).exists():
        raise ValueError(f"{folder} holds no run of hf-lpwd train")
    if not (folder / FACTS).exists():
        raise ValueError(f"the run in {folder} has not ended: there is no {FACTS} yet")
    try:
        facts, settings = (json.loads((folder / name).read_text("utf-8")) for name in (FACTS, RECORD))
    except json.JSONDecodeError as error:
        raise ValueError(f"{FACTS} or {RECORD} in {folder} cannot be read ({error})") from None
    return FinishedRun(folder, facts, settings)


def over_seeds(run: FinishedRun, others: Sequence[FinishedRun]) -> dict[str, Any]:
    """Puts together what runs measured that differ in the seed alone.

    Args:
        run: The run whose weights the card is about.
        others: At least one.

    Returns:
        `seeds`, in order; `places`: split -> place of `run` by accuracy, from 1; `rows`: for each split and
        metric the `mean` and its 95% interval from `low` to `high`, Student's t with n - 1 degrees of
        freedom: ``mean +- t * s / sqrt(n)``.

    Raises:
        ValueError: There are no others, two have the same seed, or one differs in something else.
    """
    # Here, as scipy takes its time.
    from hf_lpwd.study.stats import mean_interval

    runs = [run, *others]
    by_seed: dict[int, FinishedRun] = {}
    for one in runs:
        if one.seed in by_seed:
            raise ValueError(f"{by_seed[one.seed].folder} and {one.folder} have the same seed, {one.seed}")
        by_seed[one.seed] = one
        _check_alike(run, one)
    if not others:
        raise ValueError(
            f"an interval takes two seeds or more, but there is only {run.folder}, with seed {run.seed}: "
            "name the folders of the same command with other seeds"
        )
    rows = []
    for split, metrics in run.facts["metrics"].items():
        for metric in metrics:
            estimate = mean_interval([one.facts["metrics"][split][metric] for one in runs])
            row = {"split": split, "metric": METRICS[metric], "mean": estimate.value}
            rows.append(row | {"low": estimate.low, "high": estimate.high})
    accuracies = {
        split: [one.facts["metrics"][split]["accuracy"] for one in runs] for split in run.facts["metrics"]
    }
    places = {split: 1 + sum(value > values[0] for value in values) for split, values in accuracies.items()}
    return {"seeds": sorted(by_seed), "places": places, "rows": rows}


def _check_alike(run: FinishedRun, other: FinishedRun) -> None:
    ours, theirs = run.alike, other.alike
    for name in {**ours, **theirs}:
        here, there = ours.get(name), theirs.get(name)
        if here != there:
            raise ValueError(
                f"runs of several seeds may differ in nothing else, but {name} is {here!r:.200} in "
                f"{run.folder} and {there!r:.200} in {other.folder}"
            )


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `hf-lpwd card`."""
    parser = OneLineParser(
        prog="hf-lpwd card",
        description="Write the card of a run anew, with the mean and its 95%% interval over the same command "
        "run with several seeds. The weights, and the figures in the metadata, stay those of the run.",
        allow_abbrev=False,
    )
    parser.add_argument("output_dir", help="output folder of a run of hf-lpwd train, whose card is written")
    parser.add_argument(
        "--over_seeds",
        nargs="+",
        required=True,
        metavar="DIR",
        help="output folders of the runs with other seeds; output_dir may be among them",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd card`.

    Args:
        argv: Command line without the program's name.

    Returns:
        The exit code: 0; 2 where the input is at fault. One line on standard error then says why.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    folder = Path(args.output_dir)
    try:
        run = read_run(folder)
        others = [Path(name) for name in args.over_seeds if Path(name).resolve() != folder.resolve()]
        summary = over_seeds(run, [read_run(other) for other in others])
        card = folder / CARD
        if card.exists() and card.read_bytes() != str(model_card(run.facts)).encode():
            raise ValueError(f"{card} is not as hf-lpwd wrote it, and your changes would be lost: rename it")
    except ValueError as error:
        return refuse(parser.prog, error)
    write_card(folder, {**run.facts, "over_seeds": summary})
    for row in summary["rows"]:
        mean, low, high = (f"{row[name]:.4f}" for name in ("mean", "low", "high"))
        print(f"{row['split']} {row['metric']}: {mean}, 95% interval {low} to {high}, n = {1 + len(others)}")
    print(f"written: {card}")
    return 0
