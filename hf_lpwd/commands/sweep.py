"""`hf-lpwd sweep`: the former name of `hf-lpwd study run`."""

from __future__ import annotations

from collections.abc import Sequence

from hf_lpwd.commands.study import add_run_flags, run_study
from hf_lpwd.messages import BadInputError, OneLineParser, refuse


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd sweep`."""
    parser = OneLineParser(
        prog="hf-lpwd sweep", description="The same as hf-lpwd study run.", allow_abbrev=False
    )
    parser.add_argument("--config", dest="file", required=True, help="the study: YAML or JSON")
    parser.add_argument("--runs", help="folder of the records; default: runs/ and the file's name")
    add_run_flags(parser)
    try:
        return run_study(parser.parse_args(argv), parser.prog)
    except (BadInputError, OSError) as error:
        return refuse(parser.prog, error)
