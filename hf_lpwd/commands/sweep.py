"""`hf-lpwd sweep`: the runs of a study, side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.study.config import read_study
from hf_lpwd.study.sweep import sweep


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd sweep`.

    Returns:
        The exit code: 0; 1 if runs failed, whose records say why; 2 where the input is at fault; 130 if
        interrupted.
    """
    parser = OneLineParser(
        prog="hf-lpwd sweep",
        description="Do the runs of a study. Started again, it goes on where it was; started twice on one "
        "folder, the work is shared. To repeat a run that failed, delete its record.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="the study: YAML or JSON")
    parser.add_argument("--runs", help="folder of the records; default: runs/ and the file's name")
    parser.add_argument("--n_jobs", type=int, help="runs side by side; default: one a core, on a GPU one")
    parser.add_argument("--backend", choices=("loky", "ray"), default="loky", help="default: %(default)s")
    parser.add_argument("--gpus_per_run", type=float, default=0.0, help="with ray: share of a GPU per run")
    args = parser.parse_args(argv)
    if args.n_jobs == 0 or args.gpus_per_run < 0:
        parser.error("n_jobs must not be 0, and gpus_per_run not negative")
    if args.gpus_per_run and args.backend != "ray":
        parser.error("gpus_per_run is Ray's: add --backend ray")
    folder = args.runs or str(Path("runs") / Path(args.config).stem)
    try:
        specs = read_study(args.config)
        ends = sweep(
            specs,
            folder,
            n_jobs=args.n_jobs or _default_jobs(),
            backend=args.backend,
            gpus_per_run=args.gpus_per_run,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (BadInputError, OSError) as error:
        return refuse(parser.prog, error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this ended", file=sys.stderr)
        return 130
    except ImportError as error:
        return refuse(parser.prog, f"{error}: install the extra, pip install 'hf-lpwd[ray]'")
    print(f"{ends['here']} runs done; {ends['completed']} completed and {ends['failed']} failed in {folder}")
    return 1 if ends["failed"] else 0


def _default_jobs() -> int:
    import torch

    return 1 if torch.accelerator.is_available() else -1
