"""Fills the tables and figures of model_cards/REPLICATION.md from the committed records.

    python scripts/replication/write_page.py            # after `pack.py`

A table of the page stands between ``<!-- NAME -->`` and ``<!-- end -->`` and is replaced; the text around
them is written by hand. NAME is ``verdicts/QUESTION``; ``by_amount/METHOD``; ``rates/CONTEXT``; ``chosen``;
``prediction``; ``controls/TABLE``, a table of `hf-lpwd report` over C1 and its controls; or a function of
this file that reads the records or the diagnostics. A context counts from five complete seeds on. The same
records give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean

import pandas as pd
import yaml
from scipy.stats import spearmanr

from hf_lpwd.study.plan import read_questions
from hf_lpwd.study.records import load_records
from hf_lpwd.study.report import write_report
from hf_lpwd.study.stats import mean_interval

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "model_cards/REPLICATION.md"
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
#: No verdict from fewer.
SEEDS = 5
#: The sum of learning rate times rate over a run, at the four rates of each context.
TOTAL_DECAY = ("0.1", "0.6", "3.5", "20")
#: The rates of C1, with which the diagnostics were made.
RATES = ("0.5291", "3.175", "18.52", "105.8")
_TABLE = re.compile(r"(<!-- (?!end )(?P<name>[\w/-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def report(records: list[Path], questions: str, out: Path) -> None:
    """The report of `hf-lpwd report --complete_seeds --baseline "wd uniform" --margin 0.31`."""
    asked = read_questions(yaml.safe_load((HERE / questions).read_text())["questions"], questions)
    write_report([str(path) for path in records], str(out), "wd uniform", 0.31, asked, complete_seeds=True)


def verdicts(tables: Path, question: int) -> pd.DataFrame:
    """The comparisons of a question: verdict and points in each context, and the mean over them."""
    table = pd.read_csv(tables / f"differences-{question}.csv")
    value = "difference over seeds, points"
    columns: dict[str, dict[str, str]] = {"context": {}, "seeds": {}, "visible": {}}
    for _, row in table.iterrows():
        task = row["task"]
        columns["context"][task] = named(task)
        columns["seeds"][task] = row["seeds"]
        cell = f"**{row['verdict']}** {with_interval(row[value], row[f'{value} low'], row[f'{value} high'])}"
        columns.setdefault(f"{row['compared']} - {row['with']}", {})[task] = cell
        seen = max(float(columns["visible"].get(task, 0.0)), row["could have shown, points"])
        columns["visible"][task] = f"{seen:.2f}"
    order = ["context", *[name for name in columns if " - " in name], "seeds", "visible"]
    return pd.DataFrame(columns)[order].fillna("-")


def named(task: str) -> str:
    """The name of a context, from the report's name of its task, such as `C1: cifar10, convnext`."""
    context = task.partition(":")[0]
    return f"{context}: {CONTEXTS[context][0]}" if context in CONTEXTS else "mean over the contexts"


def chosen(tables: Path, contexts: list[Path]) -> pd.DataFrame:
    """Test accuracy in percent of each method at the total decay that validation chooses, which follows."""
    columns = {}
    for number, path in enumerate(contexts, start=1):
        table = pd.read_csv(tables / f"{number}-summary.csv")
        rates = sorted({record.settings.weight_decay for record in load_records(str(path))} - {0.0})
        amounts = {0.0: "none", **dict(zip(rates, TOTAL_DECAY, strict=True))}
        cells = [
            f"{row['test, %']:.2f} ({row['test, % low']:.2f} to {row['test, % high']:.2f}), "
            f"{amounts[min(amounts, key=lambda rate: abs(rate - row['decay']))]}"
            for _, row in table.iterrows()
        ]
        columns[path.name.partition(".")[0]] = dict(zip(table["method"], cells, strict=True))
    return pd.DataFrame(columns).fillna("-").rename_axis("method").reset_index()


@cache
def accuracies(path: Path) -> pd.DataFrame:
    """Test accuracy in percent by method, rate and seed, of the seeds whose runs are complete."""
    frame = pd.DataFrame(
        {
            "method": record.method,
            "rate": record.settings.weight_decay,
            "seed": record.settings.seed,
            "accuracy": 100.0 * record.metrics["test"].accuracy,
        }
        for record in load_records(str(path))
    )
    _, planned, _ = CONTEXTS[path.name.partition(".")[0]]
    counts = frame.groupby("seed").size()
    return frame[frame["seed"].isin(counts.index[counts == planned])]


def mean_accuracies(path: Path) -> pd.Series:
    """Their means over the seeds, by method and rate; rounded, as sums depend on the order of records."""
    return accuracies(path).groupby(["method", "rate"])["accuracy"].mean().round(6)


def rates(records: Path) -> pd.DataFrame:
    """Test accuracy in percent of each method at each total decay: mean over the complete seeds."""
    means = mean_accuracies(records).unstack()
    # Without decay there is one run a seed, at the rate 0.
    means.columns = pd.Index(["none", *TOTAL_DECAY] if 0.0 in means.columns else TOTAL_DECAY)
    return means.map("{:.2f}".format).replace("nan", "-").rename_axis("method").reset_index()


def points(difference: float) -> str:
    """A difference with its sign and two digits, where zero is +0.00."""
    return f"{round(difference, 2) + 0.0:+.2f}"


def with_interval(value: float, low: float, high: float) -> str:
    """A difference and its interval."""
    return f"{points(value)} ({points(low)} to {points(high)})"


def by_amount(contexts: list[Path], method: str) -> pd.DataFrame:
    """Points of test accuracy of a method above `wd uniform` at each total decay, paired by seed."""
    columns: dict[str, list[str]] = {"total decay": list(TOTAL_DECAY)}
    for path in contexts:
        table = accuracies(path).pivot(index="seed", columns=["method", "rate"], values="accuracy")
        if method not in table:
            continue
        found = [
            mean_interval(differences) for differences in (table[method] - table["wd uniform"]).to_numpy().T
        ]
        columns[path.name.partition(".")[0]] = [with_interval(e.value, e.low, e.high) for e in found]
    return pd.DataFrame(columns)


def prediction(contexts: list[Path]) -> pd.DataFrame:
    """R_op of `wd uniform`, in percent of the decayed parameters, beside what `rwd` and `pwd` gain on it.

    A row for each context and total decay, of means over seeds; the last is Spearman's correlation with R_op.
    """
    rows = []
    for path in contexts:
        table = mean_accuracies(path)
        seen = pd.DataFrame(
            {"rate": record.settings.weight_decay, "all": 100.0 * mean(record.opposing_penalty.rates["all"])}
            for record in load_records(str(path))
            if record.method == "wd uniform"
        )
        for (rate, r_op), total in zip(seen.groupby("rate")["all"].mean().items(), TOTAL_DECAY, strict=True):
            gains = [
                round(table[f"{timing} uniform", rate] - table["wd uniform", rate], 6)
                for timing in ("rwd", "pwd")
            ]
            rows.append((path.name.partition(".")[0], total, r_op, *gains))
    columns = ["context", "total decay", "R_op, %", "rwd - wd, points", "pwd - wd, points"]
    numbers = pd.DataFrame(rows, columns=columns)
    r_op, *gains = (numbers[column] for column in columns[2:])
    rho = [f"{spearmanr(r_op, gain).statistic:+.2f}" for gain in gains]
    texts = numbers.assign(
        **{columns[2]: r_op.map("{:.3f}".format)},
        **{gain.name: gain.map(points) for gain in gains},
    )
    return pd.concat([texts, pd.DataFrame([("all", "all", "correlation", *rho)], columns=columns)])


def progress(folder: Path) -> pd.DataFrame:
    """Runs of each context: planned, done and diverged, and the complete seeds."""
    rows = []
    for context, (name, runs, seeds) in CONTEXTS.items():
        path = folder / f"{context}.jsonl.gz"
        records = load_records(str(path)) if path.exists() else []
        complete = accuracies(path)["seed"].nunique() if records else 0
        diverged = sum(record.status == "diverged" for record in records)
        rows.append((context, name, runs * seeds, len(records), diverged, f"{complete} of {seeds}"))
    columns = ["context", "what", "runs planned", "runs done", "diverged", "complete seeds"]
    return pd.DataFrame(rows, columns=columns)


def opposing_penalty(folder: Path) -> pd.DataFrame:
    """R_op in percent, mean over the steps: of all decayed parameters, of layers, of halves of training."""
    rows = []
    for rate, total in zip(RATES, TOTAL_DECAY, strict=True):
        table = pd.read_csv(folder / f"diagnostics/opposing-penalty-{rate}.csv")
        layers = [column for column in table if column.startswith("layer_")]
        values = [100.0 * table[column].mean() for column in ("all", layers[0], layers[-1])]
        half = len(table) // 2
        parts = [100.0 * table["all"][:half].mean(), 100.0 * table["all"][half:].mean()]
        rows.append((total, *(f"{value:.3f}" for value in (*values, *parts))))
    columns = ["all, %", "layer 0, the stem", "layer 7, the head", "first half of training", "second half"]
    return pd.DataFrame(rows, columns=["total decay", *columns])


def equivalence(folder: Path) -> pd.DataFrame:
    """Distance from AdamW's weights at the end, as a fraction of the distance that AdamW moved."""
    rows = []
    for rate, total in zip(RATES, TOTAL_DECAY, strict=True):
        end = pd.read_csv(folder / f"diagnostics/equivalence-{rate}.csv").iloc[-1]
        rows.append((total, *(f"{end[name]:.4f}" for name in ("rwd", "pwd", "wd, other batches"))))
    return pd.DataFrame(rows, columns=["total decay", "rwd", "pwd", "AdamW, other batches"])


def trained(run: str) -> str:
    """The method and total decay of a model of diagnostics.sh: `wd-18.52` is `wd 3.5`."""
    name, _, rate = run.partition("-")
    name = {"none": "no decay", "linear": "pwd linear matched"}.get(name, name)
    return f"{name} {dict(zip(RATES, TOTAL_DECAY, strict=True)).get(rate, '')}".strip()


def feature_norms(folder: Path) -> pd.DataFrame:
    """Ratio of the norm of a block's output to that of its input, by block, method and total decay."""
    table = pd.read_csv(folder / "diagnostics/feature_norms.csv")
    table["run"] = table["run"].map(lambda run: trained(Path(run).name))
    ratios = table.pivot(index="layer", columns="run", values="ratio")[list(dict.fromkeys(table["run"]))]
    return ratios.map("{:.3f}".format).reset_index()


def shrink(folder: Path) -> pd.DataFrame:
    """Validation accuracy in percent with the decayed weights of all layers multiplied by a factor."""
    columns = {}
    for path in sorted(folder.glob("diagnostics/shrink-*.csv")):
        table = pd.read_csv(path)
        columns["weights multiplied by"] = table.iloc[:, 0].map("{:g}".format)
        columns[trained(path.stem.removeprefix("shrink-"))] = (100.0 * table["all"]).map("{:.2f}".format)
    return pd.DataFrame(columns)


FROM_FILES: dict[str, Callable[[Path], pd.DataFrame]] = {
    function.__name__: function
    for function in (progress, opposing_penalty, equivalence, feature_norms, shrink)
}


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table whose columns but the first are right-aligned."""
    lines = [table.columns, ["---", *["--:"] * (len(table.columns) - 1)], *table.itertuples(index=False)]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def fill(page: str, folder: Path, figures: Path) -> str:
    """Returns the page with its tables made from the records in `folder`, and writes its figures.

    Raises:
        FileNotFoundError: The page names a table that no report has.
    """
    contexts = [
        path
        for path in sorted(folder.glob("C*.jsonl.gz"))
        if "_controls" not in path.name and accuracies(path)["seed"].nunique() >= SEEDS
    ]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        report(contexts, "questions.yaml", out / "report")
        report([folder / "C1.jsonl.gz", folder / "C1_controls.jsonl.gz"], "controls.yaml", out / "controls")

        def table(match: re.Match[str]) -> str:
            name = match["name"]
            kind, _, which = name.partition("/")
            if kind == "verdicts":
                made = verdicts(out / "report/tables", int(which.removeprefix("Q")))
            elif kind == "chosen":
                made = chosen(out / "report/tables", contexts)
            elif kind == "prediction":
                made = prediction(contexts)
            elif kind == "by_amount":
                made = by_amount(contexts, which.replace("_", " "))
            elif kind == "rates":
                made = rates(folder / f"{which}.jsonl.gz")
            elif kind in FROM_FILES:
                made = FROM_FILES[kind](folder)
            else:
                return match[1] + (out / kind / "tables" / f"{which}.md").read_text().strip() + "\n"
            return match[1] + markdown(made)

        filled = _TABLE.sub(table, page)
        figures.mkdir(exist_ok=True)
        for name in re.findall(r"\(replication/figures/([\w-]+)\.svg\)", page):
            shutil.copy(out / "report/figures" / f"{name}.svg", figures / f"{name}.svg")
    return filled


def main() -> None:
    """Reads the command line and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    folder = args.page.parent / "replication"
    args.page.write_text(fill(args.page.read_text(), folder, folder / "figures"))


if __name__ == "__main__":
    main()
