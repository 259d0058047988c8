"""Small images, encoded, and datasets of them."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.splits import Splits, load_splits

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    """Returns the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random uint8 values."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def red(value: int) -> bytes:
    """Returns a 4x4 PNG of one colour."""
    return encode(Image.new("RGB", (4, 4), (value, 0, 0)))


def reds(data: datasets.Dataset) -> list[int]:
    """Returns the red value of each image's first pixel."""
    return [image.getpixel((0, 0))[0] for image in data["image"]]


def pngs(count: int, height: int = 16, width: int = 16) -> list[bytes]:
    """Returns PNG files of noise, each another one."""
    return [encode(Image.fromarray(noise(height, width, 3, seed=row))) for row in range(count)]


def cell(content: bytes | None) -> dict[str, object]:
    """Returns an image as an undecoded `datasets.Image` column holds it."""
    return {"bytes": content, "path": None}


def table(labels, image="image", label="label", feature=None) -> datasets.Dataset:
    """Returns one image a label; the red value of an image is its row."""
    columns = {image: [cell(red(row)) for row in range(len(labels))], label: labels}
    features = datasets.Features({image: datasets.Image(), label: feature}) if feature else None
    return datasets.Dataset.from_dict(columns, features=features).cast_column(image, datasets.Image())


def load_from_parquet(folder: Path, parts: dict[str, datasets.Dataset], seed: int = 0, **arguments) -> Splits:
    """Writes splits as parquet files into `folder` and loads them from there."""
    for split, data in parts.items():
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    args = DataTrainingArguments(dataset_name=str(folder), **arguments)
    return load_splits(args, seed=seed, cache_dir=str(folder / ".cache"))
