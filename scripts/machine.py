"""The conditions of a measurement: machine, versions, date; every script that prints figures prints them."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's name as Linux tells it, or what Python knows of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conditions(*packages: str, chip: str | None = None, timestamp: float | None = None) -> str:
    """Returns the conditions in one line.

    Args:
        packages: Distributions whose versions matter.
        chip: What computes, if it is not the processor.
        timestamp: Seconds since 1970; now by default.
    """
    moment = datetime.now(UTC) if timestamp is None else datetime.fromtimestamp(timestamp, tz=UTC)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{chip or f'{os.cpu_count()} cores of {cpu_name()}'}; {versions}; {moment.date()}"
