"""`hf-lpwd report`: the records of a study -> one page, its tables and its figures."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_lpwd.files import write_bytes
from hf_lpwd.study.analysis import Context, MethodResult, analyse
from hf_lpwd.study.figures import draw_figures
from hf_lpwd.study.records import load_records
from hf_lpwd.study.stats import CONFIDENCE
from hf_lpwd.study.tables import difference_table, robustness_table, runs_table, shown, summary_table


def write_report(path: str, out: str, baseline: str | None = None) -> str:
    """Writes the report of records.

    Leaves in `out`: ``index.html``, which holds everything and asks nothing of any other host; ``tables/``,
    each table as CSV and Markdown; ``figures/``, each figure as PNG and SVG.

    Args:
        path: Folder of the records, or a file that `pack_records` wrote.
        out: Folder to write to; files there of the same name are replaced.
        baseline: Method to compare with; see `analyse`.

    Returns:
        Path of the page.

    Raises:
        BadInputError: There are no records to report on, or no such baseline.
    """
    records = load_records(path)
    contexts = analyse(records, baseline)
    root = Path(out)
    sections = []
    for number, context in enumerate(contexts, 1):
        prefix = f"{number}-" if len(contexts) > 1 else ""
        tables = [summary_table(context), difference_table(context), robustness_table(context)]
        tables = [table for table in tables if table.rows]
        figures = draw_figures(context)
        for table in tables:
            _write_table(root, prefix, table)
        for figure in figures:
            write_bytes(root / "figures" / f"{prefix}{figure.name}.png", figure.png)
            write_bytes(root / "figures" / f"{prefix}{figure.name}.svg", figure.svg)
        sections.append(
            {
                "id": f"task-{number}",
                "context": context,
                "verdicts": [sentence(context, result) for result in context.methods if result.comparison],
                "tables": tables,
                "figures": [(figure, base64.b64encode(figure.svg).decode()) for figure in figures],
            }
        )
    runs = runs_table(records)
    _write_table(root, "", runs)
    environment = Environment(
        loader=PackageLoader("hf_lpwd.study", "."), autoescape=True, undefined=StrictUndefined
    )
    completed = [record for record in records if record["status"] == "completed"]
    page = environment.get_template("report.html.j2").render(
        sections=sections,
        runs=runs,
        num_runs=len(records),
        num_completed=len(completed),
        hours=sum(record["times"].get("seconds", 0.0) for record in records) / 3600.0,
        versions=completed[0]["versions"],
    )
    write_bytes(root / "index.html", page.encode())
    return str(root / "index.html")


def _write_table(root: Path, prefix: str, table: Any) -> None:
    write_bytes(root / "tables" / f"{prefix}{table.name}.csv", table.csv().encode())
    write_bytes(root / "tables" / f"{prefix}{table.name}.md", table.markdown().encode())


def sentence(context: Context, result: MethodResult) -> dict[str, str]:
    """Says in words how a method compares with the baseline.

    Returns:
        `verdict`, and `text`, the sentence with interval, p-value and the number of seeds it would take.
    """
    found = result.comparison
    assert found is not None
    if found.verdict == "too few seeds":
        text = (
            f"{result.name}: {shown(found.difference, 'points')} points against {context.baseline} on one "
            "seed, which says nothing about chance."
        )
        return {"verdict": found.verdict, "text": text}
    outcome = {
        "better": f"better than {context.baseline}",
        "worse": f"worse than {context.baseline}",
        "no difference found": f"no difference found to {context.baseline}",
    }[found.verdict]
    bounds = f"{shown(found.difference.low, 'points')} to {shown(found.difference.high, 'points')}"
    adjusted = shown(found.adjusted_p_value, "p")
    p_value = f"p {adjusted}" if adjusted.startswith("<") else f"p = {adjusted}"
    text = (
        f"{result.name}: {outcome}: {shown(found.difference.value, 'points')} points "
        f"({CONFIDENCE:.0%} interval {bounds}), {p_value} after Holm's correction, "
        f"{found.num_seeds} seeds."
    )
    if found.seeds_needed and found.verdict == "no difference found":
        text += f" To see a true difference of 0.1 points it would take about {found.seeds_needed:,} seeds."
    return {"verdict": found.verdict, "text": text}
