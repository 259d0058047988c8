"""The records of a study -> one page, its tables and its figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import counted
from hf_lpwd.study.analysis import Study, analyse
from hf_lpwd.study.answer import answers, question_names, question_text, sentence
from hf_lpwd.study.comparison import Comparison
from hf_lpwd.study.figures import draw_figures, draw_profile
from hf_lpwd.study.forest import draw_forest
from hf_lpwd.study.plan import Question, read_plan
from hf_lpwd.study.plotting import Figure
from hf_lpwd.study.records import load_records
from hf_lpwd.study.tables import (
    Table,
    comparison_table,
    pooled_table,
    robustness_table,
    runs_table,
    summary_table,
)

#: Verdict -> the heading of its comparisons.
HEADINGS = {
    "better": "Better",
    "worse": "Ruled out",
    "equivalent": "As good, within the margin",
    "undecided": "Not decided",
}

# The tables and figures of any report; those of an earlier one in the same folder are removed.
_OF_A_REPORT = re.compile(
    r"(\d+-)?(summary|robustness|differences(-\d+)?|secondary|contrasts|baselines|controls|pooled|runs)\.(csv|md)"
    r"|(\d+-)?(differences|contrasts|profile|decay|grid|layers|opposing|training)\.(png|svg)"
)


def write_report(
    paths: str | Sequence[str],
    out: str,
    baseline: str | None = None,
    margin: float | None = None,
    questions: Sequence[Question] | None = None,
    complete_seeds: bool = False,
) -> str:
    """Writes the report of records.

    Leaves in `out`: ``index.html``, which holds everything and asks nothing of any other host;
    ``report.md``, answers and tables without those of single runs; ``tables/``, each table as CSV and
    Markdown; ``figures/``, each figure as PNG and SVG. The same records give the same bytes.

    Args:
        paths: Folders of records, or files that `pack_records` wrote, with their plans.
        out: Folder to write to; the report that it holds is replaced.
        baseline: Method to compare with; see `analyse`.
        margin: Points of accuracy that would matter; see `analyse`.
        questions: Instead of those of the plan; see `analyse`.
        complete_seeds: See `analyse`.

    Returns:
        Path of the page.

    Raises:
        BadInputError: There are no records to report on, or no such baseline.
    """
    paths = [paths] if isinstance(paths, str) else paths
    records = load_records(*paths)
    plans = {path: read_plan(path) for path in paths}
    study = analyse(records, plans, baseline, margin, questions, complete_seeds)
    files: dict[str, bytes] = {}
    several = len(study.tasks) > 1
    primary = study.primary_comparisons
    asked = [question for question, _ in study.primary]
    names = question_names(asked)
    forest = _drawn(files, [draw_forest(primary, "differences", "Primary questions", several)])
    sections = []
    for number, task in enumerate(study.tasks, 1):
        prefix = f"{number}-" if several else ""
        tables = [summary_table(study, task.name), robustness_table(study, task.name)]
        figures = draw_figures(study.results[task.name], study.baseline)
        sections.append(
            {
                "id": f"task-{number}",
                "name": task.name,
                "controls": [sentence(c) for c in study.controls[task.name]],
                "tables": _written(files, tables, prefix),
                "figures": _drawn(files, figures, prefix),
            }
        )
    contrasts = draw_forest(study.contrasts, "contrasts", "Contrasts of single factors", several)
    runs = runs_table(records)
    _written(files, [runs])
    content = {
        "study": study,
        "answers": answers(study),
        "headings": HEADINGS,
        "questions": list(map(question_text, names, asked)),
        "forest": forest,
        "primary": _written(files, _primary(study, names, several)),
        "secondary": _written(files, _secondary(study, several)),
        "contrasts": _drawn(files, [contrasts]),
        "profile": _drawn(files, [draw_profile(study.scores)]),
        "sections": sections,
        "runs": runs,
        "num_runs": len(records),
        "hours": sum(record.times.seconds for record in records) / 3600.0,
        "versions": records[0].versions,
    }
    environment = Environment(
        loader=PackageLoader("hf_lpwd.study", "."),
        autoescape=lambda name: name == "index.html.j2",
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["counted"] = counted
    for name in ("index.html", "report.md"):
        files[name] = environment.get_template(f"{name}.j2").render(content).encode()
    root = Path(out)
    for file in [*root.glob("tables/*"), *root.glob("figures/*")]:
        if _OF_A_REPORT.fullmatch(file.name):
            file.unlink()
    for name, content_of_file in files.items():
        write_bytes(root / name, content_of_file)
    return str(root / "index.html")


def _primary(study: Study, names: Sequence[str], several: bool) -> list[Table]:
    """One table for each family of primary questions."""
    families: dict[str, list[Comparison]] = {}
    for name, (_, comparisons) in zip(names, study.primary, strict=True):
        families.setdefault(name, []).extend(comparisons)
    if len(families) == 1:
        (found,) = families.values()
        return [comparison_table("differences", "Primary comparisons on test", found, several)]
    return [
        comparison_table(f"differences-{i}", f"Primary comparisons on test: {name}", found, several)
        for i, (name, found) in enumerate(families.items(), 1)
    ]


def _secondary(study: Study, several: bool) -> list[Table]:
    controls = [control for task in study.tasks for control in study.controls[task.name]]
    families = [
        ("secondary", "Secondary questions, without a verdict", study.secondary),
        ("contrasts", "Contrasts, over all pairs of equal settings", study.contrasts),
        ("baselines", f"Baselines from elsewhere against {study.baseline}", study.baselines),
        ("controls", "Controls", controls),
    ]
    return [*(comparison_table(*family, several) for family in families), pooled_table(study)]


def _written(files: dict[str, bytes], tables: Iterable[Table], prefix: str = "") -> list[Table]:
    """Adds the tables that have rows to `files`, and returns them."""
    kept = [table for table in tables if table.rows]
    for table in kept:
        files[f"tables/{prefix}{table.name}.csv"] = table.csv().encode()
        files[f"tables/{prefix}{table.name}.md"] = table.markdown().encode()
    return kept


def _drawn(
    files: dict[str, bytes], figures: Iterable[Figure | None], prefix: str = ""
) -> list[tuple[Figure, str]]:
    """Adds the figures that there are to `files`, and returns each with its SVG in base64."""
    kept = [figure for figure in figures if figure is not None]
    for figure in kept:
        files[f"figures/{prefix}{figure.name}.png"] = figure.png
        files[f"figures/{prefix}{figure.name}.svg"] = figure.svg
    return [(figure, base64.b64encode(figure.svg).decode()) for figure in kept]
