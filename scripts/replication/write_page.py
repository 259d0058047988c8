"""Fills the tables and figures of model_cards/REPLICATION.md from the committed records.

    python scripts/replication/write_page.py            # after `hf-lpwd study pack runs/C1 .../C1.jsonl.gz`

A table of the page stands between ``<!-- NAME -->`` and ``<!-- end -->`` and is replaced; the text around
them is written by hand. NAME is ``report/TABLE`` or ``controls/TABLE``, tables of `hf-lpwd report` over all
contexts or over C1 and its controls; ``verdicts``, the columns of them that matter; ``rates/CONTEXT``; or a
function of this file that reads the records or the diagnostics. The same records give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from hf_lpwd.study.plan import read_questions
from hf_lpwd.study.records import load_records
from hf_lpwd.study.report import write_report

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "model_cards/REPLICATION.md"
#: Runs that PROTOCOL.md plans in each context.
PLANNED = {
    "C1": 330,
    "C1_controls": 20,
    "C2": 330,
    "C3": 330,
    "C4": 165,
    "C5": 185,
    "C6": 85,
    "C7": 165,
    "C8": 165,
}
#: The sum of learning rate times rate over a run, at the four rates of each context.
TOTAL_DECAY = ("0.1", "0.6", "3.5", "20")
#: The rates of C1, with which the diagnostics were made.
RATES = ("0.5291", "3.175", "18.52", "105.8")
_TABLE = re.compile(r"(<!-- (?!end )(?P<name>[\w/-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def report(records: list[Path], questions: str, out: Path) -> None:
    """The report of `hf-lpwd report --complete_seeds --baseline "wd uniform" --margin 0.31`."""
    asked = read_questions(yaml.safe_load((HERE / questions).read_text())["questions"], questions)
    write_report([str(path) for path in records], str(out), "wd uniform", 0.31, asked, complete_seeds=True)


def verdicts(tables: Path) -> pd.DataFrame:
    """The primary comparisons: question, context, sides, verdict, difference with its interval, seeds."""
    parts = []
    for number in range(1, 6):
        part = pd.read_csv(tables / f"differences-{number}.csv")
        parts.append(part.assign(question=f"Q{number}"))
    table = pd.concat(parts)
    points = "difference over seeds, points"
    difference = table[points].map("{:+.2f}".format)
    known = table[f"{points} low"].notna()
    interval = (
        table[f"{points} low"].map("{:+.2f}".format) + " to " + table[f"{points} high"].map("{:+.2f}".format)
    )
    columns = {
        "question": table["question"],
        **({"context": table["task"]} if "task" in table else {}),
        "compared": table["compared"].map(plain),
        "with": table["with"].map(plain),
        "verdict": table["verdict"].map("**{}**".format),
        "points": difference.where(~known, difference + " (" + interval + ")"),
        "seeds": table["seeds"],
        "visible": table["could have shown, points"].map("{:.2f}".format).replace("nan", "-"),
    }
    return pd.DataFrame(columns)


def plain(method: str) -> str:
    """The name of a method as the protocol has it."""
    return re.sub(r"\d+(,\d+)+", "shuffled", method)


def rates(records: Path) -> pd.DataFrame:
    """Test accuracy in percent of each method at each total decay: mean over the seeds that all have."""
    frame = pd.DataFrame(
        {
            "method": plain(record.method),
            "rate": record.settings.weight_decay,
            "seed": record.settings.seed,
            "accuracy": 100.0 * record.metrics["test"].accuracy,
        }
        for record in load_records(str(records))
    )
    counts = frame.groupby("seed").size()
    frame = frame[frame["seed"].isin(counts.index[counts == counts.max()])]
    means = frame.groupby(["method", "rate"])["accuracy"].mean().unstack()
    # Without decay there is one run a seed, at the rate 0.
    means.columns = pd.Index(["none", *TOTAL_DECAY] if 0.0 in means.columns else TOTAL_DECAY)
    return means.map("{:.2f}".format).replace("nan", "-").rename_axis("method").reset_index()


def progress(folder: Path) -> pd.DataFrame:
    """Runs of each context: planned and done."""
    rows = []
    for context, planned in PLANNED.items():
        path = folder / f"{context}.jsonl.gz"
        records = load_records(str(path)) if path.exists() else []
        diverged = sum(record.status == "diverged" for record in records)
        rows.append((context, planned, len(records), diverged))
    return pd.DataFrame(rows, columns=["context", "runs planned", "runs done", "diverged"])


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
    columns = ["all layers", "layer 0", "layer 7", "first half of training", "second half"]
    return pd.DataFrame(rows, columns=["total decay", *columns])


def equivalence(folder: Path) -> pd.DataFrame:
    """Distance from AdamW's weights at the end, as a fraction of the distance that AdamW moved."""
    rows = []
    for rate, total in zip(RATES, TOTAL_DECAY, strict=True):
        end = pd.read_csv(folder / f"diagnostics/equivalence-{rate}.csv").iloc[-1]
        rows.append((total, *(f"{end[name]:.4f}" for name in ("rwd", "pwd", "wd, other batches"))))
    return pd.DataFrame(rows, columns=["total decay", "rwd", "pwd", "AdamW, other batches"])


def feature_norms(folder: Path) -> pd.DataFrame:
    """Ratio of the norm of a block's output to that of its input, by block."""
    table = pd.read_csv(folder / "diagnostics/feature_norms.csv")
    table["run"] = table["run"].map(lambda run: Path(run).name)
    ratios = table.pivot(index="layer", columns="run", values="ratio")[list(dict.fromkeys(table["run"]))]
    return ratios.map("{:.3f}".format).reset_index()


def shrink(folder: Path) -> pd.DataFrame:
    """Validation accuracy in percent with the decayed weights of all layers multiplied by a factor."""
    columns = {}
    for path in sorted(folder.glob("diagnostics/shrink-*.csv")):
        table = pd.read_csv(path)
        columns["weights multiplied by"] = table.iloc[:, 0].map("{:g}".format)
        columns[path.stem.removeprefix("shrink-")] = table["all"].map(lambda value: f"{100.0 * value:.2f}")
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
    contexts = [path for path in sorted(folder.glob("C*.jsonl.gz")) if "_controls" not in path.name]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        report(contexts, "questions.yaml", out / "report")
        if (folder / "C1_controls.jsonl.gz").exists():
            report(
                [folder / "C1.jsonl.gz", folder / "C1_controls.jsonl.gz"], "controls.yaml", out / "controls"
            )

        def table(match: re.Match[str]) -> str:
            name = match["name"]
            if name == "verdicts":
                return match[1] + markdown(verdicts(out / "report/tables"))
            if name in FROM_FILES:
                return match[1] + markdown(FROM_FILES[name](folder))
            origin, _, file = name.partition("/")
            if origin == "rates":
                return match[1] + markdown(rates(folder / f"{file}.jsonl.gz"))
            return match[1] + (out / origin / "tables" / f"{file}.md").read_text().strip() + "\n"

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
