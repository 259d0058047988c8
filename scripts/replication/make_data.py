"""Writes the replication's datasets from CIFAR-10 and 100 classes of Tiny ImageNet.

    python scripts/replication/make_data.py --cifar10 DIR --tiny_imagenet DIR --out DIR

Three folders of parquet files come out, which `hf-lpwd train --dataset_name` loads. Which image is in which
split depends on `SEED` alone, so everybody gets the same ones. The encoded images are copied as they are.

| folder | split | images | of |
|---|---|---|---|
| `pretrain` | train, validation | 500 and 50 a class | 80 classes of Tiny ImageNet |
| `cifar10` | train, validation, test | 4,000, 2,000, 10,000 | train and validation: of its training split |
| `unseen20` | train, validation, test | 4,000, 1,000, 6,000 | the 20 other classes of Tiny ImageNet |
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets, load_dataset

SEED = 20261127
#: Every fifth class of Tiny ImageNet is kept from the pretraining.
EVERY = 5


def by_class(labels: list[int], sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Draws disjoint splits with equal numbers of images of each class.

    Args:
        labels: The class of each row.
        sizes: Split -> images of each class.
        seed: Of the draw.

    Returns:
        Split -> its rows, in ascending order.

    Raises:
        ValueError: A class has fewer images than the splits take.
    """
    rng = np.random.default_rng(seed)
    chosen: dict[str, list[np.ndarray]] = {split: [] for split in sizes}
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        if len(rows) < sum(sizes.values()):
            raise ValueError(
                f"class {label} has {len(rows)} images, and the splits take {sum(sizes.values())}"
            )
        start = 0
        for split, size in sizes.items():
            chosen[split].append(rows[start : start + size])
            start += size
    return {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}


def only(dataset: Dataset, classes: list[int]) -> Dataset:
    """Keeps the rows of some classes, which are numbered from 0 in the order given."""
    names = dataset.features["label"].names
    rows = np.flatnonzero(np.isin(dataset["label"], classes))
    number = {label: i for i, label in enumerate(classes)}
    labels = [number[label] for label in np.asarray(dataset["label"])[rows]]
    feature = ClassLabel(names=[names[label] for label in classes])
    return (
        dataset.select(rows).remove_columns("label").add_column("label", labels).cast_column("label", feature)
    )


def write(splits: DatasetDict, folder: Path) -> None:
    """Writes each split as one parquet file and prints its size."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        classes = dataset.features["label"].num_classes
        print(f"{folder.name}: {split}: {len(dataset)} images of {classes} classes")


def main() -> None:
    """Reads the command line and writes the three folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", required=True, help="folder or Hub name of CIFAR-10")
    parser.add_argument("--tiny_imagenet", required=True, help="folder of 100 classes of Tiny ImageNet")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()

    cifar = load_dataset(args.cifar10).cast_column("img", Image(decode=False)).rename_column("img", "image")
    cifar = cifar.select_columns(["image", "label"])
    parts = by_class(cifar["train"]["label"], {"train": 400, "validation": 200}, SEED)
    splits = {split: cifar["train"].select(rows) for split, rows in parts.items()}
    write(DatasetDict(splits | {"test": cifar["test"]}), args.out / "cifar10")

    tiny = load_dataset(args.tiny_imagenet).cast_column("image", Image(decode=False))
    tiny = tiny.select_columns(["image", "label"])
    classes = range(tiny["train"].features["label"].num_classes)
    kept = [label for label in classes if label % EVERY]
    unseen = [label for label in classes if not label % EVERY]
    write(DatasetDict({split: only(part, kept) for split, part in tiny.items()}), args.out / "pretrain")

    rest = only(tiny["train"], unseen)
    parts = by_class(rest["label"], {"train": 200, "validation": 50, "test": 250}, SEED)
    splits = {split: rest.select(rows) for split, rows in parts.items()}
    splits["test"] = concatenate_datasets([splits["test"], only(tiny["validation"], unseen)])
    write(DatasetDict(splits), args.out / "unseen20")


if __name__ == "__main__":
    main()
