"""Fills the tables and figures of model_cards/REPLICATION.md from the committed records.

    python scripts/replication/write_page.py            # after `pack.py`

A table of the page stands between ``<!-- NAME -->`` and ``<!-- end -->`` and is replaced; the text around
them is written by hand. NAME is ``verdicts/QUESTION``; ``secondary``; ``by_amount/METHOD``;
``rates/CONTEXT``; ``controls/TABLE``, a table of `hf-lpwd report` over C1 and its controls; another function
of `page_tables`, of the context behind the slash; or one of `page_diagnostics`. A context counts from five
complete seeds on. The same records give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import page_diagnostics
import page_tables
import pandas as pd
import yaml

from hf_lpwd.study.plan import read_questions
from hf_lpwd.study.report import write_report

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "model_cards/REPLICATION.md"
#: No verdict from fewer.
SEEDS = 5
#: Of which the epochs of the checkpoints are shown.
SCHEDULES = ("uniform", "linear matched", "reverse matched")
_TABLE = re.compile(r"(<!-- (?!end )(?P<name>[\w/-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def report(records: list[Path], questions: str, out: Path) -> Path:
    """Folder of tables of `hf-lpwd report --complete_seeds --baseline "wd uniform" --margin 0.31`."""
    asked = read_questions(yaml.safe_load((HERE / questions).read_text())["questions"], questions)
    files = [str(path) for path in records]
    write_report(files, str(out), "wd uniform", page_tables.MARGIN, asked, complete_seeds=True)
    return out / "tables"


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
        if "_controls" not in path.name and page_tables.num_seeds(path) >= SEEDS
    ]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        answers = report(contexts, "questions.yaml", out / "report")
        controls = [folder / "C1.jsonl.gz", folder / "C1_controls.jsonl.gz"]
        of_controls = report(controls, "controls.yaml", out / "controls")

        def table(match: re.Match[str]) -> str:
            kind, _, which = match["name"].partition("/")
            of_context = folder / f"{which}.jsonl.gz"
            if kind == "controls":
                made = page_tables.differences(of_controls / f"{which}.csv")
            elif kind == "verdicts":
                made = page_tables.differences(answers / f"differences-{which.removeprefix('Q')}.csv")
            elif kind == "secondary":
                made = page_tables.differences(answers / "secondary.csv")
            elif kind == "by_amount":
                made = page_tables.by_amount(contexts, which.replace("_", " "))
            elif kind == "chosen_epochs":
                made = page_tables.chosen_epochs(contexts, [f"wd {one}" for one in SCHEDULES])
            elif kind == "prediction":
                made = page_tables.prediction(contexts)
            elif kind == "rates":
                summary = answers / f"{contexts.index(of_context) + 1}-summary.csv"
                made = page_tables.rates(of_context, summary)
            elif which:
                made = getattr(page_tables, kind)(of_context)
            elif kind == "progress":
                made = page_tables.progress(folder)
            else:
                made = getattr(page_diagnostics, kind)(folder / "diagnostics")
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
