"""`hf-lpwd sweep`: the runs of a study, side by side, each once, whatever is killed on the way."""

from __future__ import annotations

import json
import math
import threading
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
from hf_lpwd.study.config import RunSpec

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
        report: Called with a line for each run that ends, here or in another sweep.

    Returns:
        How many of the runs are now ``"completed"`` and ``"failed"``, and how many were done ``"here"``.

    Raises:
        ImportError: Backend ``"ray"``, and Ray is not installed.
    """
    root = Path(folder)
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    deaths: Counter[str] = Counter()
    done_here = 0
    with _parallel(backend, gpus_per_run), _Progress(root, specs, report):
        while waiting := [spec for spec in specs if not _record(root, spec).exists()]:
            try:
                jobs = joblib.Parallel(n_jobs=n_jobs, batch_size=1)
                done = sum(jobs(joblib.delayed(do_run)(spec, folder) for spec in waiting))
            except BrokenProcessPool:
                # A worker died, as one does that runs out of memory: no exception says which run it was at.
                _give_up_on_deadly(root, waiting, deaths)
                continue
            done_here += done
            if not done:
                time.sleep(_POLL_SECONDS)
    ends = Counter(json.loads(_record(root, spec).read_text("utf-8"))["status"] for spec in specs)
    return ends + Counter(here=done_here)


def do_run(spec: RunSpec, folder: str) -> bool:
    """Does a run and writes its record, unless it has one or somebody else is at it; tells whether it did."""
    record = _record(Path(folder), spec)
    lock = FileLock(_lock(Path(folder), spec))
    try:
        with lock.acquire(blocking=False):
            if record.exists():
                return False
            marker = Path(f"{lock.lock_file}.busy")
            marker.touch()
            # torch and the Trainer load in the workers only.
            from hf_lpwd.study.run import in_one_thread

            write_json(record, _finite(in_one_thread(spec)))
            marker.unlink()
    except Timeout:
        return False
    return True


def _describe(record: dict[str, Any]) -> str:
    """A run in a few words: method, decay rate, learning rate and seed, as far as set, and what came out."""
    short = {"weight_decay": "weight_decay", "learning_rate": "lr", "seed": "seed"}
    settings = record["settings"]
    values = [f"{label}={settings[name]}" for name, label in short.items() if name in settings]
    if record["status"] == "failed":
        outcome = f"FAILED, {record['error']['type']}: {record['error']['message']}"
    else:
        accuracy = record["metrics"]["validation"]["accuracy"]
        outcome = "no accuracy" if accuracy is None else f"validation accuracy {accuracy:.4f}"
    return f"{' '.join([record['method'], *values])}: {outcome} ({record['times']['seconds']:.0f} s)"


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
    """Reports each record that appears in the folder, and estimates the time that is left."""

    def __init__(self, root: Path, specs: Sequence[RunSpec], report: Callable[[str], None]) -> None:
        self.missing = [path for path in (_record(root, spec) for spec in specs) if not path.exists()]
        self.total = len(specs)
        self.there = self.total - len(self.missing)
        self.report = report
        self.start = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        if self.there:
            self.report(f"{self.there} of {self.total} runs have a record already")
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self._look()

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            self._look()

    def _look(self) -> None:
        for path in [path for path in self.missing if path.exists()]:
            self.missing.remove(path)
            done = self.total - len(self.missing)
            left = (time.monotonic() - self.start) / (done - self.there) * len(self.missing)
            line = _describe(json.loads(path.read_text(encoding="utf-8")))
            self.report(f"[{done}/{self.total}] {line}; about {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
