"""Images a second of this package's input against transformers' example pipeline and timm's loader.

All read the same encoded images and draw the same augmentation; `--check` shows the latter. In each round
every loader serves the same number of images, shuffled; a ratio is the median over the rounds
of a loader's images a second to the faster of the example's two (without workers, and with two) in the same
round. With workers, the main process computes in what threads they leave of the cores, at least one.
`--training` times the Trainer on both inputs instead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import disable_progress_bars
from input_loaders import (
    CLASSES,
    SETTINGS,
    Setting,
    coordinates,
    example_collate,
    example_dataset,
    make_loader,
    our_dataset,
    photographs,
    pixel_values,
    write_images,
)
from machine import conditions
from scipy import stats
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainingArguments

from hf_lpwd.files import write_json
from hf_lpwd.vision.data.images import collate

KINDS = ("example", "ours", "timm")
WORKERS = (0, 2)


def serve(loader: Any, setting: Setting) -> Iterator[torch.Tensor]:
    """Yields whole batches of a loader's images, starting again where it ends."""
    while True:
        for batch in loader:
            yield pixel_values(loader, batch)


def input_speeds(setting: Setting, rounds: int, threads: int) -> dict[str, np.ndarray]:
    """Returns images a second of each loader, [rounds], by `"kind, workers"`."""
    batches = setting.count // setting.batch_size
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        count = setting.count + setting.batch_size  # the batch that starts the workers
        write_images(data, photographs(setting, count), setting.file_format)
        sources = {
            f"{kind}, {workers} workers": make_loader(kind, setting, data, workers)
            for kind in KINDS
            for workers in WORKERS
        }
        speeds: dict[str, list[float]] = {name: [] for name in sources}
        order = np.random.default_rng(0)
        for round_ in range(-1, rounds):
            for name in order.permutation(list(sources)):
                torch.set_num_threads(max(1, threads - sources[name].num_workers))
                # Workers start before the clock, and stop at the end of the turn: none runs in another's.
                stream = serve(sources[name], setting)
                next(stream)
                start = time.perf_counter()
                for images in islice(stream, batches):
                    assert images.shape == (setting.batch_size, 3, setting.size, setting.size)
                seconds = time.perf_counter() - start
                stream.close()
                if round_ >= 0:
                    speeds[name].append(setting.batch_size * batches / seconds)
    return {name: np.array(values) for name, values in speeds.items()}


def crops(kind: str, setting: Setting, count: int) -> np.ndarray:
    """Returns what a pipeline did to images that show coordinates.

    Returns:
        float array [count, 5]: top, left, height and width of the crop, as fractions of the image, and 1 if
        it is mirrored.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        write_images(data, coordinates(setting, count), "PNG")
        loader = make_loader(kind, setting, data, 0)
        images = torch.cat([pixel_values(loader, batch) for batch in loader])
    # Blue is full inside of the image, which tells a padding of zeros from it.
    values = images.numpy() * 0.5 + 0.5
    found = []
    for red, green, blue in values:
        rows, columns = np.flatnonzero((blue > 0.99).any(axis=1)), np.flatnonzero((blue > 0.99).any(axis=0))
        down, right = red[rows, columns[0]], green[rows[0], columns]
        steps = np.polyfit(rows, down, 1), np.polyfit(columns, right, 1)
        (slope_y, top), (slope_x, left) = steps
        mirrored = slope_x < 0
        if mirrored:
            left += slope_x * (setting.size - 1)
        found.append([top, left, slope_y * setting.size, abs(slope_x) * setting.size, mirrored])
    return np.array(found)


def check(setting: Setting, count: int) -> dict[str, float]:
    """Compares what ours and the example do to each image.

    Returns:
        p-values by what is compared: of two-sample Kolmogorov-Smirnov tests of place and size, and of
        Fisher's test of the fraction that is mirrored; and the fraction of images that differ from their
        neighbour.
    """
    ours, example = (crops(kind, setting, count) for kind in ("ours", "example"))
    random_size = setting.augmentation == "random_resized_crop"
    results = {}
    for name, column in [("top", 0), ("left", 1), *([("height", 2), ("width", 3)] if random_size else [])]:
        # In whole pixels, as grey levels tell no more.
        pixels = [np.rint(side[:, column] * (setting.shape[0] - 1)) for side in (ours, example)]
        results[name] = stats.ks_2samp(*pixels).pvalue
    if random_size:
        results["aspect ratio"] = stats.ks_2samp(
            (ours[:, 3] / ours[:, 2]).round(3), (example[:, 3] / example[:, 2]).round(3)
        ).pvalue
    mirrored = [int(side[:, 4].sum()) for side in (ours, example)]
    table = [[number, len(ours) - number] for number in mirrored]
    results["mirrored"] = stats.fisher_exact(table).pvalue
    for who, side in (("ours", ours), ("example", example)):
        results[f"differ from their neighbour, {who}"] = (
            (side[1:].round(3) != side[:-1].round(3)).any(1).mean()
        )
    return {name: float(value) for name, value in results.items()}


def training_speeds(setting: Setting, rounds: int) -> dict[str, np.ndarray]:
    """Returns images a second of stock Trainers on the example's input and on ours, [rounds]."""
    size = {"depths": [2, 2], "hidden_sizes": [32, 64], "num_stages": 2, "patch_size": 4}
    model = ConvNextForImageClassification(ConvNextConfig(**size, num_labels=CLASSES))
    steps = min(20, setting.count // setting.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        write_images(data, photographs(setting, 2 * setting.count), setting.file_format)
        inputs = {"example": (example_dataset(setting, data), example_collate)}
        finished = replace(setting, in_memory=True)  # a stock Trainer finishes none
        inputs["ours"] = (our_dataset(finished, data), collate)
        trainers = {}
        for name, (dataset, collator) in inputs.items():
            for workers in WORKERS:
                args = TrainingArguments(
                    output_dir=folder,
                    max_steps=steps,
                    per_device_train_batch_size=setting.batch_size,
                    dataloader_num_workers=workers,
                    dataloader_pin_memory=False,
                    remove_unused_columns=False,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                )
                trainers[f"{name}, {workers} workers"] = Trainer(model, args, collator, train_dataset=dataset)
        speeds: dict[str, list[float]] = {name: [] for name in trainers}
        order = np.random.default_rng(0)
        for round_ in range(-1, rounds):
            for name in order.permutation(list(trainers)):
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):  # the losses
                    trainers[name].train()
                seconds = time.perf_counter() - start
                if round_ >= 0:
                    speeds[name].append(setting.batch_size * steps / seconds)
    return {name: np.array(values) for name, values in speeds.items()}


def report(speeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Prints a table, and returns its figures."""
    base = np.maximum(*(speeds[f"example, {workers} workers"] for workers in WORKERS))
    rows = {}
    print("| input | images a second | ratio to the example's best | quartiles |\n|---|---|---|---|")
    for name, values in speeds.items():
        low, median, high = np.quantile(values / base, [0.25, 0.5, 0.75])
        rows[name] = {"speeds": values.tolist(), "ratio": median, "quartiles": [low, high]}
        print(f"| {name} | {np.median(values):,.0f} | {median:.2f} | {low:.2f} to {high:.2f} |")
    return rows


def main() -> None:
    """Prints tables, and writes all figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", type=int, metavar="N", help="compare what is done to N images instead")
    parser.add_argument("--training", action="store_true", help="time whole training instead")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--output", default="benchmark_throughput.json")
    args = parser.parse_args()
    disable_progress_bars()
    torch.set_num_threads(args.threads)
    packages = ("torch", "torchvision", "transformers", "datasets", "timm", "Pillow")
    where = f"{conditions(*packages)}; {args.threads} threads"
    print(f"{where}; {f'{args.check} images' if args.check else f'{args.rounds} rounds'}")
    record: dict[str, Any] = {"conditions": where, "settings": {}}
    for name in args.settings:
        setting = SETTINGS[name]
        print(f"\n{name}, {setting.augmentation}\n")
        if args.check:
            record["settings"][name] = check(setting, args.check)
            for what, value in record["settings"][name].items():
                print(f"- {what}: {value:.3f}")
        else:
            if args.training:
                speeds = training_speeds(setting, args.rounds)
            else:
                speeds = input_speeds(setting, args.rounds, args.threads)
            record["settings"][name] = report(speeds)
    write_json(args.output, record)


if __name__ == "__main__":
    main()
