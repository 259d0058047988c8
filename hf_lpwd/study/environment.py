"""Where a run is made: device, threads, commit, versions."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("hf-lpwd", "torch", "transformers", "accelerate", "datasets", "timm", "numpy")


def versions() -> dict[str, str]:
    """Python's version, and those of the libraries that decide a result."""
    found = {library: metadata.version(library) for library in _LIBRARIES}
    return {"python": platform.python_version(), **found}


def environment() -> dict[str, Any]:
    """Device, threads, and the commit of this package; its version if it does not lie in a checkout."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = torch.cuda.get_device_name() if device is not None and device.type == "cuda" else _processor()
    return {
        "device": "cpu" if device is None else device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _commit() -> str:
    package = Path(__file__).parents[1]
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12"]
    tracked = ["git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py"]
    try:
        subprocess.run(tracked, capture_output=True, check=True, timeout=20)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"version {metadata.version('hf-lpwd')}"
