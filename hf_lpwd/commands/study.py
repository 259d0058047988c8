"""`hf-lpwd study`: what is done with a study as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.study.records import pack_records


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd study`.

    Returns:
        The exit code: 0, or 2 where the input is at fault.
    """
    parser = OneLineParser(prog="hf-lpwd study", description="Work on a study.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    pack = actions.add_parser("pack", help="pack the records of a folder into one file that report reads")
    pack.add_argument("runs", metavar="RUNS", help="folder of the records")
    pack.add_argument("file", metavar="FILE", help="file to write, .jsonl.gz or .jsonl")
    args = parser.parse_args(argv)
    try:
        number = pack_records(args.runs, args.file)
    except (BadInputError, OSError) as error:
        return refuse(f"hf-lpwd study {args.action}", error)
    print(f"{number} records in {args.file}")
    return 0
