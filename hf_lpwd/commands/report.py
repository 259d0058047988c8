"""`hf-lpwd report`: the records of a study -> one page, its tables and its figures."""

from __future__ import annotations

from collections.abc import Sequence

from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.study.report import write_report


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd report`.

    Returns:
        The exit code: 0, or 2 where the input is at fault.
    """
    parser = OneLineParser(
        prog="hf-lpwd report",
        description="Write the report of a study: a page, tables and figures.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUNS", help="the records: a folder, or a file of hf-lpwd study pack")
    parser.add_argument("--out", default="report", help="folder to write to; default: %(default)s")
    parser.add_argument("--baseline", help="method to compare with; default: 'wd uniform', which is AdamW")
    args = parser.parse_args(argv)
    try:
        page = write_report(args.runs, args.out, args.baseline)
    except (BadInputError, OSError) as error:
        return refuse(parser.prog, error)
    print(f"report in {page}")
    return 0
