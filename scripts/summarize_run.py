"""Prints what a run of `hf-lpwd train` measured, as Markdown, with its conditions."""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    """Reads the folder on the command line; run it on the machine that trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path)
    folder = parser.parse_args().output_dir

    def read(name: str) -> dict:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    settings, train = read("run_settings.json"), read("train_results.json")
    date = datetime.fromtimestamp((folder / "train_results.json").stat().st_mtime, tz=UTC).date()
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "accelerate")
    )
    for split, name in (("validation", "eval"), ("test", "test")):
        if (folder / f"{name}_results.json").exists():
            print(f"- {split} accuracy: {read(f'{name}_results.json')[f'{name}_accuracy']:.4f}")
    print(
        f"- training: {train['train_runtime']:.0f} s, {train['train_samples_per_second']:.0f} images a second"
    )
    print(f"- seed {settings['seed']}, {settings['decay_timing']} x {settings['layer_schedule']}")
    print(f"- {os.cpu_count()} cores of {cpu_name()}; {versions}; {date}")


if __name__ == "__main__":
    main()
