"""The tables of model_cards/REPLICATION.md, each from the records of contexts or from a report over them.

A context is a file such as ``C1.jsonl.gz``; PROTOCOL.md says what it is. Accuracies are in percent,
differences in points; intervals are 95% t intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean

import pandas as pd
from scipy.stats import spearmanr, t

from hf_lpwd.study.record import Record
from hf_lpwd.study.records import load_records
from hf_lpwd.study.results import best_epochs_mean
from hf_lpwd.study.stats import Estimate, mean_interval

#: What each context is, and what PROTOCOL.md plans in it: runs for each seed, and seeds.
CONTEXTS = {
    "C1": ("ConvNeXt, CIFAR-10", 33, 10),
    "C1_controls": ("its controls", 2, 10),
    "C2": ("Swin, CIFAR-10", 33, 10),
    "C3": ("ConvNeXt, Unseen-20", 33, 10),
    "C4": ("ConvNeXt from scratch, CIFAR-10", 33, 5),
    "C5": ("ConvNeXt, CIFAR-10, SGD", 37, 5),
    "C6": ("ConvNeXt, CIFAR-10, constant learning rate", 17, 5),
    "C7": ("Swin, Unseen-20", 33, 5),
    "C8": ("EfficientNet-Lite0, CIFAR-10", 33, 5),
}
#: The sum of learning rate times rate over a run, at the four rates of each context.
TOTAL_DECAY = ("0.1", "0.6", "3.5", "20")
#: Points of test accuracy that would matter.
MARGIN = 0.31


def context_of(path: Path) -> str:
    """``C1``, of ``replication/C1.jsonl.gz``."""
    return path.name.partition(".")[0]


def points(difference: float) -> str:
    """A difference with its sign and two digits, where zero is +0.00."""
    return f"{round(difference, 2) + 0.0:+.2f}"


def with_interval(estimate: Estimate) -> str:
    """A difference and its interval."""
    return f"{points(estimate.value)} ({points(estimate.low)} to {points(estimate.high)})"


# -- from the tables of a report


def differences(table: Path) -> pd.DataFrame:
    """The comparisons of a question in each context: verdict, if the question asks for one, and points.

    The report corrects the tests for equivalence too. Where that alone leaves a comparison undecided, which
    by the rule of the protocol is equivalent, the verdict has an asterisk.

    Args:
        table: ``differences-1.csv`` of a report, or ``secondary.csv``.
    """
    comparisons = pd.read_csv(table)
    value, visible = "difference over seeds, points", "could have shown, points"
    columns: dict[str, dict[str, str]] = {"context": {}, "seeds": {}}
    for _, row in comparisons.dropna(subset=[value]).iterrows():
        task = row["task"]
        columns["context"][task] = named(task)
        columns["seeds"][task] = row["seeds"]
        difference = Estimate(row[value], row[f"{value} low"], row[f"{value} high"])
        verdict = f"**{row['verdict']}** " if "verdict" in row else ""
        if row.get("verdict") == "undecided" and equivalent_alone(difference, row["seeds"]):
            verdict = "**undecided\\*** "
        cell = verdict + with_interval(difference)
        columns.setdefault(f"{row['compared']} - {row['with']}", {})[task] = cell
    if visible in comparisons:
        # Of several comparisons the largest.
        largest = comparisons.groupby("task")[visible].max()
        columns["visible"] = largest.map("{:.2f}".format).to_dict()
    order = ["context", *[name for name in columns if " - " in name], "seeds", "visible"]
    return pd.DataFrame(columns).fillna("-")[[name for name in order if name in columns]]


def equivalent_alone(difference: Estimate, seeds: int) -> bool:
    """Whether two one-sided tests at 5% place a difference within the margin; from its 95% interval."""
    error = (difference.high - difference.value) / float(t.isf(0.025, seeds - 1))
    return bool(t.sf((MARGIN - abs(difference.value)) / error, seeds - 1) < 0.05)


def named(task: str) -> str:
    """The name of a context, from the report's name of its task, such as `C1: cifar10, convnext`."""
    context = task.partition(":")[0]
    return (
        f"{context}: {CONTEXTS[context][0]}" if context in CONTEXTS else task.replace("tasks", "the contexts")
    )


# -- from records


@cache
def complete(path: Path) -> list[Record]:
    """The records of the seeds whose runs are complete."""
    records = load_records(str(path))
    _, planned, _ = CONTEXTS[context_of(path)]
    seeds = [record.settings.seed for record in records]
    return [record for record in records if seeds.count(record.settings.seed) == planned]


def num_seeds(path: Path) -> int:
    """How many seeds are complete."""
    return len({record.settings.seed for record in complete(path)})


def amounts(records: Iterable[Record]) -> dict[float, str]:
    """Rate -> total decay."""
    rates = sorted({record.settings.weight_decay for record in records} - {0.0})
    return {0.0: "none", **dict(zip(rates, TOTAL_DECAY, strict=True))}


def accuracies(path: Path) -> pd.DataFrame:
    """Accuracy in percent by seed (rows) and by split, method and rate (columns)."""
    frame = pd.DataFrame(
        (split, record.method, record.settings.weight_decay, record.settings.seed, 100.0 * score)
        for record in complete(path)
        for split in ("validation", "test")
        if (score := record.score(split)) is not None
    )
    return frame.pivot(index=3, columns=[0, 1, 2], values=4).rename_axis("seed")


def means(path: Path) -> pd.Series:
    """Test accuracy by method and rate: mean over seeds, rounded, as sums depend on the order of records."""
    return accuracies(path)["test"].mean().round(6)


def rates(path: Path, summary: Path) -> pd.DataFrame:
    """Test accuracy at each total decay, and at the one that validation chose by `summary` of a report.

    The methods are in the order of the latter; its interval is that of a mean, not of a difference.
    """
    total = amounts(complete(path))
    table = means(path).unstack().rename(columns=total).map("{:.2f}".format).replace("nan", "-")
    choice = pd.read_csv(summary).set_index("method")
    rate = choice["decay"].map(lambda decay: min(total, key=lambda rate: abs(rate - decay)))
    accuracy = [f"{a:.2f} ({b:.2f} to {c:.2f})" for a, b, c in choice.filter(regex="^test, %").to_numpy()]
    chosen = pd.DataFrame({"chosen": rate.map(total), "test accuracy there": accuracy})
    return chosen.join(table).rename_axis("method").reset_index()


def by_amount(contexts: list[Path], method: str) -> pd.DataFrame:
    """Points of test accuracy of a method above `wd uniform` at each total decay, paired by seed.

    Of `wd uniform` itself, above no decay. The last row is of the mean over the contexts, by the seeds that
    all of them have.
    """
    found = {}
    for path in contexts:
        table = accuracies(path)["test"]
        if method in table:
            than = table["no decay", 0.0] if method == "wd uniform" else table["wd uniform"]
            found[context_of(path)] = table[method].sub(than, axis=0).set_axis(TOTAL_DECAY, axis=1)
    together = pd.concat(found.values()).groupby("seed")
    found["mean"] = together.mean()[together.size() == len(found)]
    rows = [
        (context, *(with_interval(mean_interval(differences[total])) for total in TOTAL_DECAY))
        for context, differences in found.items()
    ]
    return pd.DataFrame(rows, columns=["context", *TOTAL_DECAY])


def chosen_epochs(contexts: list[Path], methods: Sequence[str]) -> pd.DataFrame:
    """The epoch whose checkpoint is the result, mean over seeds, of some methods at each total decay."""
    rows = []
    for path in contexts:
        found = pd.DataFrame(
            {
                "method": record.method,
                "rate": record.settings.weight_decay,
                "best": max(record.epochs, key=lambda epoch: epoch.accuracy).epoch,
                "last": record.epochs[-1].epoch,
            }
            for record in complete(path)
            if record.method in methods
        )
        means = found.groupby(["method", "rate"])["best"].mean().unstack().reindex(methods)
        cells = [" / ".join(f"{value:.1f}" for value in column.dropna()) for _, column in means.items()]
        rows.append((f"{context_of(path)}, of {found['last'].max():g}", *cells))
    return pd.DataFrame(rows, columns=["context", *TOTAL_DECAY])


def prediction(contexts: list[Path]) -> pd.DataFrame:
    """R_op of `wd uniform`, in percent of the decayed parameters, and whether `rwd` and `pwd` gain by it.

    R_op at each total decay, the mean over steps and seeds; below, Spearman's correlation over the contexts
    of R_op with the gain at the same total decay, and over all pairs of a context and a total decay.
    """
    r_op, gains = {}, {"rwd": {}, "pwd": {}}
    for path in contexts:
        context, table = context_of(path), means(path)
        for rate, total in amounts(complete(path)).items():
            if not rate:
                continue
            seen = [
                mean(record.opposing_penalty.rates["all"])
                for record in complete(path)
                if record.method == "wd uniform" and record.settings.weight_decay == rate
            ]
            r_op[context, total] = 100.0 * mean(seen)
            for timing, gain in gains.items():
                gain[context, total] = round(table[f"{timing} uniform", rate] - table["wd uniform", rate], 6)
    measured = pd.Series(r_op)
    rows = measured.unstack()[list(TOTAL_DECAY)].map("{:.3f}".format)
    rows["all amounts"] = "-"
    for timing, gain in gains.items():
        pairs = pd.DataFrame({"r_op": measured, "gain": pd.Series(gain)})
        of_amount = [pairs.xs(total, level=1) for total in TOTAL_DECAY]
        rows.loc[f"correlation with {timing} - wd"] = [
            f"{spearmanr(part['r_op'], part['gain']).statistic:+.2f}" for part in (*of_amount, pairs)
        ]
    return rows.rename_axis("R_op, %").reset_index()


def paper_metric(path: Path) -> pd.DataFrame:
    """The paper's way to score and choose beside this study's, and by how much it is higher.

    Here: the epoch and, for all seeds at once, the rate with the best validation accuracy. The paper's: one
    run of each rate, the mean of its ten best test accuracies after an epoch, and the rate for which that
    is highest. With few epochs ten are nearly all, so the best epoch, a tenth of the paper's share, stands
    beside it.
    """
    validation, test = (accuracies(path)[split] for split in ("validation", "test"))
    ten, best = (_of_epochs(path, count) for count in (10, 1))
    rows = []
    for method in test.columns.unique(0):
        honest = test[method][validation[method].mean().round(6).idxmax()]
        row = [method, f"{honest.mean():.2f}"]
        for table in (ten, best):
            found = table[method].max(axis=1)
            row += [f"{found.mean():.2f}", with_interval(mean_interval(found - honest))]
        rows.append(row)
    names = ["here", "ten best epochs, rate by test", "minus here", "best epoch, rate by test", "minus here"]
    return pd.DataFrame(rows, columns=["method", *names])


def paper_claims(path: Path) -> pd.DataFrame:
    """Points above `wd uniform` that one run of each setting shows, scored and chosen as in the paper."""
    ten = _of_epochs(path, 10)
    best = {method: ten[method].max(axis=1) for method in ten.columns.unique(0)}
    rows = [
        (f"{method} - wd uniform", *map(points, best[method] - best["wd uniform"]))
        for method in best
        if method != "wd uniform"
    ]
    return pd.DataFrame(rows, columns=["compared", *(f"seed {seed}" for seed in ten.index)])


def _of_epochs(path: Path, count: int) -> pd.DataFrame:
    """Mean of the `count` best test accuracies after an epoch, in percent: seeds by method and rate."""
    frame = pd.DataFrame(
        (
            record.method,
            record.settings.weight_decay,
            record.settings.seed,
            100.0 * best_epochs_mean(record.test_accuracy_after_epochs, count),
        )
        for record in complete(path)
    )
    return frame.pivot(index=2, columns=[0, 1], values=3)


def progress(folder: Path) -> pd.DataFrame:
    """Runs of each context: planned, done and diverged, and the complete seeds."""
    rows = []
    for context, (name, runs, seeds) in CONTEXTS.items():
        path = folder / f"{context}.jsonl.gz"
        records = load_records(str(path)) if path.exists() else []
        done = num_seeds(path) if records else 0
        diverged = sum(record.status == "diverged" for record in records)
        rows.append((context, name, runs * seeds, len(records), diverged, f"{done} of {seeds}"))
    columns = ["context", "what", "runs planned", "runs done", "diverged", "complete seeds"]
    return pd.DataFrame(rows, columns=columns)
