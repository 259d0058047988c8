"""Means and intervals of a run's figures, over the same run with other seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lpwd.checkpoints.run_record import IMAGES, differences
from hf_lpwd.files import FACTS, RECORD
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.hub.card import METRICS

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
        # The seed also chooses which images a split has.
        settings = {name: self.settings[name] for name in self.settings if name not in ("seed", IMAGES)}
        versions = {f"version of {name}": value for name, value in self.facts["versions"].items()}
        metrics = {split: sorted(values) for split, values in self.facts["metrics"].items()}
        return {**settings, **{name: self.facts[name] for name in _ALIKE}, "metrics": metrics, **versions}


def read_run(folder: Path) -> FinishedRun:
    """Reads the folder of a run of ``hf-lpwd train``.

    Raises:
        BadInputError: It holds none, or one that has not ended.
    """
    if not (folder / RECORD).exists():
        raise BadInputError(f"{folder} holds no run of hf-lpwd train")
    if not (folder / FACTS).exists():
        raise BadInputError(f"the run in {folder} has not ended: there is no {FACTS} yet")
    try:
        facts, settings = (json.loads((folder / name).read_text("utf-8")) for name in (FACTS, RECORD))
    except json.JSONDecodeError as error:
        raise BadInputError(f"{FACTS} or {RECORD} in {folder} cannot be read ({error})") from None
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
        BadInputError: There are no others, two have the same seed, or one differs in something else.
    """
    # Here, as scipy takes its time.
    from hf_lpwd.study.stats import mean_interval

    runs = [run, *others]
    by_seed: dict[int, FinishedRun] = {}
    for one in runs:
        if one.seed in by_seed:
            raise BadInputError(f"{by_seed[one.seed].folder} and {one.folder} have the same seed, {one.seed}")
        by_seed[one.seed] = one
        for name, (here, there) in differences(run.alike, one.alike).items():
            raise BadInputError(
                f"runs of several seeds may differ in nothing else, but {name} is {here!r:.200} in "
                f"{run.folder} and {there!r:.200} in {one.folder}"
            )
    if not others:
        raise BadInputError(
            f"an interval takes two seeds or more, but there is only {run.folder}, with seed {run.seed}: "
            "name the folders of the same command with other seeds"
        )
    rows = []
    for split, metrics in run.facts["metrics"].items():
        for metric in metrics:
            estimate = mean_interval([one.facts["metrics"][split][metric] for one in runs]).clipped()
            row = {"split": split, "metric": METRICS[metric], "mean": estimate.value}
            rows.append(row | {"low": estimate.low, "high": estimate.high})
    accuracies = {
        split: [one.facts["metrics"][split]["accuracy"] for one in runs] for split in run.facts["metrics"]
    }
    places = {split: 1 + sum(value > values[0] for value in values) for split, values in accuracies.items()}
    return {"seeds": sorted(by_seed), "places": places, "rows": rows}
