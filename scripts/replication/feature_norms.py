"""Measures how feature norms change from layer to layer: the paper's "inter-layer connectivity".

    python scripts/replication/feature_norms.py --dataset data/cifar10 --split validation RUN [RUN ...]

Each RUN is a folder that `hf-lpwd train` saved. For each layer a line is printed, as CSV: the mean over the
images of the norm of the layer's output, and of its ratio to the norm of its input.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Image, load_dataset
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_lpwd import LPWDConfig, plan_layers


def blocks(model: nn.Module) -> dict[int, nn.Module]:
    """Returns the module of each layer that is one block."""
    plan = plan_layers(model, LPWDConfig(weight_decay=1.0))
    found = {}
    for layer in plan.layers:
        names = [module.removeprefix("block ") for module in layer.modules if module.startswith("block ")]
        if len(names) == 1:
            found[layer.layer] = model.get_submodule(names[0])
    return found


def norms(value: Any) -> Tensor:
    """L2 norm of each image's features; of the first tensor where there are several."""
    features = value[0] if isinstance(value, tuple) else value
    return features.detach().flatten(1).float().norm(dim=1)


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[int, list[tuple[Tensor, Tensor]]]]:
    """Records the norms of the input and the output of each block."""
    records: dict[int, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for layer, block in blocks(model).items():
        records[layer] = []

        def record(module: nn.Module, inputs: Any, output: Any, layer: int = layer) -> None:
            records[layer].append((norms(inputs), norms(output)))

        handles.append(block.register_forward_hook(record))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def feature_norms(folder: str, images: list[Any], batch_size: int = 250) -> list[tuple[int, float, float]]:
    """Returns layer, mean output norm and mean ratio of output to input norm, of each block.

    Args:
        folder: A saved run.
        images: PIL images.
        batch_size: Images at a time.
    """
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with recorded(model) as records:
        for start in range(0, len(images), batch_size):
            model(**processor(images[start : start + batch_size], return_tensors="pt"))
    rows = []
    for layer, pairs in records.items():
        before, after = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        rows.append((layer, float(after.mean()), float((after / before).mean())))
    return rows


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--max_samples", type=int, default=1000)
    parser.add_argument("runs", nargs="+")
    args = parser.parse_args()
    dataset = load_dataset(args.dataset, split=args.split)
    column = next(name for name in ("image", "img") if name in dataset.column_names)
    dataset = dataset.cast_column(column, Image())
    images = [image.convert("RGB") for image in dataset[: args.max_samples][column]]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["run", "layer", "output_norm", "ratio"])
    for run in args.runs:
        for layer, norm, ratio in feature_norms(run, images):
            writer.writerow([run, layer, f"{norm:.4f}", f"{ratio:.4f}"])


if __name__ == "__main__":
    main()
