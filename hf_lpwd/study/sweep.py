"""The runs of a study, side by side, each once, whatever is killed on the way."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
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
from hf_lpwd.messages import counted, warnings_once
from hf_lpwd.study.config import RunSpec

logger = logging.getLogger(__name__)

LOCKS = ".locks"
#: Where runs write; in the folder of the records, so that what is killed leaves nothing elsewhere.
WORK = ".work"
#: How often the worker of a run may die before the run counts as failed.
MAX_DEATHS = 2
_POLL_SECONDS = 2.0
_IDLE_SECONDS = 60


def sweep(
    specs: Sequence[RunSpec],
    folder: str,
    *,
    n_jobs: int = 1,
    backend: str = "loky",
    gpus_per_run: float = 0.0,
    retry_failed: bool = False,
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
        retry_failed: Do runs again that failed (not those that diverged).
        report: Called with a line for each run that ends, here or in another sweep.

    Returns:
        How many of the runs are now ``"completed"``, ``"diverged"`` and ``"failed"``, and how many were done
        ``"here"``.

    Raises:
        ImportError: Backend ``"ray"``, and Ray is not installed.
    """
    root = Path(folder)
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    if retry_failed:
        _remove_failed(root, specs, report)
    deaths: Counter[str] = Counter()
    done_here = 0
    warned: dict[str, None] = {}
    parent = os.getpid() if backend == "loky" else None
    side_by_side = joblib.effective_n_jobs(n_jobs)
    paths = [_record(root, spec) for spec in specs]
    with _parallel(backend, gpus_per_run), Progress(paths, side_by_side, report):
        while waiting := [spec for spec in specs if not _record(root, spec).exists()]:
            try:
                jobs = joblib.Parallel(n_jobs=n_jobs, batch_size=1)
                ended = jobs(joblib.delayed(do_run)(spec, folder, parent) for spec in waiting)
            except BrokenProcessPool:
                # A worker died, as one does that runs out of memory: no exception says which run it was at.
                _give_up_on_deadly(root, waiting, deaths)
                continue
            done = [lines for lines in ended if lines is not None]
            done_here += len(done)
            warned |= dict.fromkeys(line for lines in done for line in lines)
            if not done:
                time.sleep(_POLL_SECONDS)
    for line in warned:
        logger.warning("%s", line)
    ends = Counter(json.loads(path.read_text("utf-8"))["status"] for path in paths)
    return ends + Counter(here=done_here)


def do_run(spec: RunSpec, folder: str, parent: int | None = None) -> list[str] | None:
    """Does a run and writes its record, unless it has one or somebody else is at it.

    Args:
        spec: The run.
        folder: Of the records.
        parent: Process with which a worker ends, however that one ends.

    Returns:
        The warnings of the run; None if it was not done here.
    """
    warned: list[str] = []
    record = _record(Path(folder), spec)
    lock = FileLock(_lock(Path(folder), spec))
    try:
        with lock.acquire(blocking=False):
            if record.exists():
                return None
            work = Path(folder) / WORK / spec.id
            if parent is not None and parent != os.getpid():
                _end_with(parent, work)
            marker = Path(f"{lock.lock_file}.busy")
            marker.touch()
            # torch and the Trainer load in the workers only.
            from hf_lpwd.study.run import in_one_thread

            with warnings_once(warned.append):
                write_json(record, _finite(in_one_thread(spec, str(work))))
            marker.unlink()
    except Timeout:
        return None
    return warned


_watched: dict[str, Path] = {}


def _end_with(parent: int, work: Path) -> None:
    """Ends this process when its parent has ended, and removes where it was writing."""
    first = not _watched
    _watched["work"] = work

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        shutil.rmtree(_watched["work"], ignore_errors=True)
        os._exit(1)

    if first:
        threading.Thread(target=watch, daemon=True).start()


def _remove_failed(root: Path, specs: Sequence[RunSpec], report: Callable[[str], None]) -> None:
    removed = 0
    for spec in specs:
        path = _record(root, spec)
        if path.exists() and json.loads(path.read_text("utf-8"))["status"] == "failed":
            path.unlink()
            removed += 1
    report(f"{counted(removed, 'run that failed is', 'runs that failed are')} done again")


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
                shutil.rmtree(root / WORK / spec.id, ignore_errors=True)
                deaths[spec.id] += 1
                if deaths[spec.id] >= MAX_DEATHS:
                    from hf_lpwd.study.run import dead_record

                    write_json(_record(root, spec), dead_record(spec))
        except Timeout:
            continue


@contextmanager
def _parallel(backend: str, gpus_per_run: float) -> Iterator[None]:
    options: dict[str, Any] = {"inner_max_num_threads": 1, "idle_worker_timeout": _IDLE_SECONDS}
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


class Progress:
    """Reports each record that appears at `paths`, and estimates the time left from how long runs took."""

    def __init__(self, paths: Sequence[Path], side_by_side: int, report: Callable[[str], None]) -> None:
        self.missing = [path for path in paths if not path.exists()]
        self.total = len(paths)
        self.side_by_side = side_by_side
        self.report = report
        self.seconds: list[float] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        there = self.total - len(self.missing)
        done = f"; {there} have a record already" if there else ""
        self.report(f"{counted(self.total, 'run')}, {self.side_by_side} side by side{done}")
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
            record = json.loads(path.read_text(encoding="utf-8"))
            self.seconds.append(record["times"]["seconds"])
            left = sum(self.seconds) / len(self.seconds) * len(self.missing) / self.side_by_side
            done = self.total - len(self.missing)
            self.report(f"[{done}/{self.total}] {_describe(record)}; about {duration(left)} left")


def duration(seconds: float) -> str:
    """A time in words: ``"2 h 5 min"``, ``"3 min 20 s"``, ``"8 s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _describe(record: dict[str, Any]) -> str:
    """A run in a few words: method, decay rate, learning rate and seed, as far as set, and what came out."""
    settings = record["settings"]
    names = ("weight_decay", "total_decay", "learning_rate", "seed")
    values = [f"{name.replace('learning_rate', 'lr')}={settings[name]}" for name in names if name in settings]
    if record["status"] == "completed":
        outcome = f"validation accuracy {record['metrics']['validation']['accuracy']:.4f}"
    else:
        outcome = f"{record['status'].upper()}, {record['error']['type']}: {record['error']['message']}"
    return f"{' '.join([record['method'], *values])}: {outcome} ({record['times']['seconds']:.0f} s)"
