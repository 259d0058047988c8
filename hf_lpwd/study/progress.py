"""What a study says while it runs: each run that ends, and about how long the rest takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Progress:
    """Reports each record that appears, and estimates the time that is left from how long runs took.

    Args:
        paths: Where the records of all runs are or will be.
        side_by_side: How many runs are done at a time.
        report: Called with each line.
    """

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
        self.report(f"{self.total} runs, {self.side_by_side} side by side{done}")
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
    short = {
        "weight_decay": "weight_decay",
        "total_decay": "total_decay",
        "learning_rate": "lr",
        "seed": "seed",
    }
    settings = record["settings"]
    values = [f"{label}={settings[name]}" for name, label in short.items() if name in settings]
    if record["status"] == "completed":
        outcome = f"validation accuracy {record['metrics']['validation']['accuracy']:.4f}"
    else:
        outcome = f"{record['status'].upper()}, {record['error']['type']}: {record['error']['message']}"
    return f"{' '.join([record['method'], *values])}: {outcome} ({record['times']['seconds']:.0f} s)"
