"""`hf-lpwd sweep`: the runs of a study, side by side, each once, whatever is killed on the way."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
from filelock import FileLock, Timeout
from joblib.externals.loky.process_executor import BrokenProcessPool

from hf_lpwd.files import write_json
from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.study.config import RunSpec, read_study

LOCKS = ".locks"
#: How often the worker of a run may die before the run counts as failed.
MAX_DEATHS = 2
_POLL_SECONDS = 2.0


def sweep(
    specs: Sequence[RunSpec],
    folder: str,
    *,
    n_jobs: int = 1,
    backend: str = "loky",
    gpus_per_run: float = 0.0,
    report: Callable[[str], None] = lambda line: None,
) -> Counter[str]:
    """Does the runs that have no record yet, and waits for those that another sweep is at.

    A record is a file ``<id>.json`` in `folder`. Whoever does a run holds a lock on its name, which the
    system releases when the process ends, however it ends; so sweeps on one folder share the work.

    Args:
        specs: The runs, from `read_study`.
        folder: Where the records are; made if missing.
        n_jobs: Runs side by side; -1 for one a core.
        backend: ``"loky"``, processes on this machine, or ``"ray"``, on a Ray cluster that sees `folder`.
        gpus_per_run: With ``"ray"``, the share of a GPU that a run takes.
        report: Called with a line for each run that ends.

    Returns:
        How many of the runs are now ``"completed"`` and ``"failed"``.

    Raises:
        ImportError: Backend ``"ray"``, and Ray is not installed.
    """
    root = Path(folder)
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    deaths: Counter[str] = Counter()
    progress = _Progress(len(specs), report)
    progress.count(sum(_record(root, spec).exists() for spec in specs))
    with _parallel(backend, gpus_per_run):
        while waiting := [spec for spec in specs if not _record(root, spec).exists()]:
            done = 0
            try:
                jobs = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
                for line in jobs(joblib.delayed(do_run)(spec, folder) for spec in waiting):
                    if line is not None:
                        done += 1
                        progress.ended(line)
            except BrokenProcessPool:
                # A worker died, as one does that runs out of memory: no exception says which run it was at.
                _give_up_on_deadly(root, waiting, deaths)
                continue
            if not done:
                time.sleep(_POLL_SECONDS)
    return Counter(json.loads(_record(root, spec).read_text("utf-8"))["status"] for spec in specs)


def do_run(spec: RunSpec, folder: str) -> str | None:
    """Does a run and writes its record, unless there is one or somebody else is at it.

    Returns:
        A line about what came out, None if nothing was done.
    """
    record = _record(Path(folder), spec)
    lock = FileLock(_lock(Path(folder), spec))
    try:
        with lock.acquire(blocking=False):
            if record.exists():
                return None
            marker = Path(f"{lock.lock_file}.busy")
            marker.touch()
            # torch and the Trainer load in the workers only.
            from hf_lpwd.study.run import in_one_thread

            result = in_one_thread(spec)
            write_json(record, _finite(result))
            marker.unlink()
    except Timeout:
        return None
    seconds = result["times"]["seconds"]
    if result["status"] == "failed":
        return f"{describe(result)}: FAILED, {result['error']['type']}: {result['error']['message']}"
    accuracy = result["metrics"].get("validation", {}).get("accuracy", math.nan)
    return f"{describe(result)}: validation accuracy {accuracy:.4f} ({seconds:.0f} s)"


def describe(record: dict[str, Any]) -> str:
    """Names a run in a few words: method, decay rate, learning rate and seed, as far as they are set."""
    short = {"weight_decay": "weight_decay", "learning_rate": "lr", "seed": "seed"}
    settings = record["settings"]
    return " ".join(
        [
            record["method"],
            *(f"{label}={settings[name]}" for name, label in short.items() if name in settings),
        ]
    )


def _record(root: Path, spec: RunSpec) -> Path:
    return root / f"{spec.id}.json"


def _lock(root: Path, spec: RunSpec) -> Path:
    return root / LOCKS / spec.id


def _give_up_on_deadly(root: Path, specs: Sequence[RunSpec], deaths: Counter[str]) -> None:
    """Records the failure of runs that were going on at too many deaths of a worker."""
    for spec in specs:
        marker = Path(f"{_lock(root, spec)}.busy")
        if not marker.exists() or _record(root, spec).exists():
            continue
        try:
            with FileLock(_lock(root, spec)).acquire(blocking=False):
                marker.unlink(missing_ok=True)
                deaths[spec.id] += 1
                if deaths[spec.id] >= MAX_DEATHS:
                    from hf_lpwd.study.run import dead_record

                    write_json(_record(root, spec), dead_record(spec))
        except Timeout:
            continue


@contextmanager
def _parallel(backend: str, gpus_per_run: float) -> Iterator[None]:
    options: dict[str, Any] = {"inner_max_num_threads": 1}
    if backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
        options = {"ray_remote_args": {"num_gpus": gpus_per_run}} if gpus_per_run else {}
    with joblib.parallel_config(backend, **options):
        yield


def _finite(value: Any) -> Any:
    """Puts None in the place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Progress:
    """Counts runs, and estimates the time that is left from those done so far."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total = total
        self.report = report
        self.done = 0
        self.done_here = 0
        self.start = time.monotonic()

    def count(self, there: int) -> None:
        self.done = there
        if there:
            self.report(f"{there} of {self.total} runs have a record already")

    def ended(self, line: str) -> None:
        self.done += 1
        self.done_here += 1
        left = (time.monotonic() - self.start) / self.done_here * (self.total - self.done)
        self.report(f"[{self.done}/{self.total}] {line}; about {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd sweep`.

    Returns:
        The exit code: 0; 1 if runs failed, whose records say why; 2 where the input is at fault.
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
    except ImportError as error:
        return refuse(parser.prog, f"{error}: install the extra, pip install 'hf-lpwd[ray]'")
    print(f"{ends['completed']} runs completed, {ends['failed']} failed; records in {folder}")
    return 1 if ends["failed"] else 0


def _default_jobs() -> int:
    import torch

    return 1 if torch.accelerator.is_available() else -1
