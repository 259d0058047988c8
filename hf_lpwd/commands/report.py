"""`hf-lpwd report`: the records of a study -> one page, its tables and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.settings_file import read_settings
from hf_lpwd.study.plan import read_questions
from hf_lpwd.study.report import write_report


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd report`."""
    parser = OneLineParser(
        prog="hf-lpwd report",
        description="Write the report of a study: a page, tables and figures.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUNS", nargs="+", help="the records: folders, or files of hf-lpwd study pack"
    )
    parser.add_argument("--out", default="report", help="folder to write to; default: %(default)s")
    parser.add_argument("--baseline", help="method to compare with; default: 'wd uniform', which is AdamW")
    parser.add_argument("--margin", type=float, help="points of accuracy that would matter")
    parser.add_argument(
        "--questions", metavar="FILE", help="study file whose questions are answered, instead of the plan's"
    )
    parser.add_argument(
        "--complete_seeds", action="store_true", help="count only the seeds that all methods of a task have"
    )
    args = parser.parse_args(argv)
    if args.margin is not None and not 0.0 < args.margin <= 100.0:
        parser.error(f"margin is {args.margin}, but must be above 0 and at most 100 points")
    try:
        questions = None
        if args.questions is not None:
            questions = read_questions(read_settings(args.questions).get("questions"), args.questions)
        print_report(args.runs, args.out, args.baseline, args.margin, questions, args.complete_seeds)
    except (BadInputError, OSError) as error:
        return refuse(parser.prog, error)
    return 0


def print_report(runs: str | Sequence[str], out: str, *choices: Any) -> None:
    """Writes a report and says where, and whether another one was there; see `write_report`."""
    replaced = ", in place of the one that was there" if (Path(out) / "index.html").exists() else ""
    print(f"report in {write_report(runs, out, *choices)}{replaced}")
