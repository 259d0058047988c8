"""Prints what a run of `hf-lpwd train` measured, as Markdown, with its conditions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import conditions


def main() -> None:
    """Reads the folder on the command line; run it on the machine that trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path)
    folder = parser.parse_args().output_dir

    def read(name: str) -> dict:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    settings, train = read("run_settings.json"), read("train_results.json")
    for split, name in (("validation", "eval"), ("test", "test")):
        if (folder / f"{name}_results.json").exists():
            print(f"- {split} accuracy: {read(f'{name}_results.json')[f'{name}_accuracy']:.4f}")
    print(
        f"- training: {train['train_runtime']:.0f} s, {train['train_samples_per_second']:.0f} images a second"
    )
    print(f"- seed {settings['seed']}, {settings['decay_timing']} x {settings['layer_schedule']}")
    ended = (folder / "train_results.json").stat().st_mtime
    print(f"- {conditions('torch', 'transformers', 'accelerate', timestamp=ended)}")


if __name__ == "__main__":
    main()
