"""The same images through three input pipelines: this package's, transformers' example's, and timm's."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageDataset as TimmDataset
from timm.data import create_loader
from timm.data.readers.reader_hfds import ReaderHfds
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import ViTImageProcessor

from hf_lpwd.vision.data.images import ImageDataset, collate
from hf_lpwd.vision.data.transforms import ImageTransform

MEAN = STD = (0.5, 0.5, 0.5)
CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """One way of training on images.

    Attributes:
        shape: Height and width of the images.
        file_format: How they are encoded, unless given.
        augmentation: As in `hf_lpwd.vision.data.transforms`.
        size: Side of what the model sees.
        batch_size: Images a batch.
        count: Images a measurement.
        in_memory: Whether this package decodes them once.
    """

    shape: tuple[int, int]
    file_format: str
    augmentation: str
    size: int
    batch_size: int
    count: int
    in_memory: bool


SETTINGS = {
    "32 px": Setting((32, 32), "PNG", "crop_flip", 32, 128, 16384, True),
    "32 to 224 px": Setting((32, 32), "PNG", "crop_flip", 224, 32, 1024, True),
    "JPEG to 224 px": Setting((375, 500), "JPEG", "random_resized_crop", 224, 32, 512, False),
    "photograph to 224 px": Setting((1536, 2048), "JPEG", "random_resized_crop", 224, 32, 256, False),
}


def photographs(setting: Setting, count: int) -> list[np.ndarray]:
    """Cuts images, uint8 [H, W, 3], at random places out of the two photographs of scikit-learn.

    Where they are larger than those, they are cut out of enlargements with the grain of a camera, without
    which they would be encoded in a third of the bytes of a photograph.
    """
    rng = np.random.default_rng(0)
    height, width = setting.shape
    sources = [Image.fromarray(photo) for photo in load_sample_images().images]
    # Small images are cut from small photographs, so that each still shows something.
    sources = [source.reduce(max(1, 200 // height)) for source in sources]
    enlarge = math.ceil(height / sources[0].height)
    if enlarge > 1:
        sources = [
            _with_grain(source.resize((source.width * enlarge, source.height * enlarge)), rng)
            for source in sources
        ]
    cut = []
    for index in range(count):
        source = sources[index % len(sources)]
        left, top = rng.integers(0, (source.width - width + 1, source.height - height + 1))
        cut.append(np.asarray(source.crop((left, top, left + width, top + height))))
    return cut


def _with_grain(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(photograph) + rng.normal(0, 4, (photograph.height, photograph.width, 1))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def coordinates(setting: Setting, count: int) -> list[np.ndarray]:
    """Makes images, uint8 [H, W, 3], whose red grows evenly downwards, and whose green to the right."""
    height, width = setting.shape
    down = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    right = np.linspace(0, 255, width)[None].repeat(height, axis=0)
    return [np.rint(np.stack([down, right, 255 + 0 * down], axis=-1)).astype(np.uint8)] * count


def write_images(folder: Path, images: list[np.ndarray], file_format: str) -> None:
    """Writes a dataset of encoded images and random labels as `folder/train.parquet`."""
    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, file_format, **({"quality": 95} if file_format == "JPEG" else {}))
        cells.append({"bytes": buffer.getvalue(), "path": None})
    labels = np.random.default_rng(0).integers(0, CLASSES, len(cells))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)}
    )
    rows = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    rows.to_parquet(folder / "train.parquet")


def read_encoded(folder: Path) -> datasets.Dataset:
    """Loads what `write_images` wrote."""
    # The cache is not inside the folder, where it would be taken for more of the data.
    return datasets.load_dataset(str(folder), split="train", cache_dir=f"{folder}-cache")


def random_part(setting: Setting) -> list[Any]:
    """Returns torchvision's transforms of PIL images that equal the setting's augmentation."""
    if setting.augmentation == "crop_flip":
        side = setting.shape[0]
        crop = transforms.RandomCrop(side, padding=side // 8)
        resize = [transforms.Resize(setting.size)] if setting.size != side else []
        return [crop, transforms.RandomHorizontalFlip(), *resize]
    return [transforms.RandomResizedCrop(setting.size), transforms.RandomHorizontalFlip()]


def our_dataset(setting: Setting, folder: Path) -> ImageDataset:
    """Returns the dataset of this package; images that are kept in memory are decoded here."""
    processor = ViTImageProcessor(
        size={"height": setting.size, "width": setting.size}, image_mean=MEAN, image_std=STD
    )
    transform = ImageTransform(processor, setting.augmentation)
    return ImageDataset(
        read_encoded(folder), transform, in_memory=setting.in_memory, unfinished=not setting.in_memory
    )


def example_dataset(setting: Setting, folder: Path) -> datasets.Dataset:
    """Returns the dataset as transformers' `run_image_classification.py` sets it up."""
    transform = transforms.Compose(
        [*random_part(setting), transforms.ToTensor(), transforms.Normalize(mean=MEAN, std=STD)]
    )

    def transform_rows(rows: dict[str, list]) -> dict[str, list]:
        rows["pixel_values"] = [transform(image.convert("RGB")) for image in rows["image"]]
        return rows

    rows = read_encoded(folder)
    rows.set_transform(transform_rows)
    return rows


def example_collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks samples as `run_image_classification.py` does."""
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples]),
    }


def make_loader(kind: str, setting: Setting, folder: Path, workers: int) -> DataLoader:
    """Returns the loader of a pipeline; it yields whole batches in an order drawn again each time.

    Args:
        kind: `"ours"`, `"example"` or `"timm"`.
        setting: What to do with the images.
        folder: Where `write_images` wrote them.
        workers: Number of worker processes, which live as long as the loader.
    """
    if kind == "timm":
        loader = create_loader(
            TimmDataset(str(folder), ReaderHfds(str(folder), root=f"{folder}-cache")),
            setting.size,
            setting.batch_size,
            is_training=True,
            color_jitter=None,
            mean=MEAN,
            std=STD,
            num_workers=workers,
            use_prefetcher=False,
        )
        if setting.augmentation == "crop_flip":
            # timm's own crops resize: the crop of a padded image takes their place.
            own = loader.dataset.transform.transforms
            loader.dataset.transform = transforms.Compose([*random_part(setting), *own[-2:]])
        return loader
    return DataLoader(
        our_dataset(setting, folder) if kind == "ours" else example_dataset(setting, folder),
        batch_size=setting.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=collate if kind == "ours" else example_collate,
        persistent_workers=workers > 0,
    )


def pixel_values(loader: DataLoader, batch: Any) -> torch.Tensor:
    """Returns the images of a batch of any loader, float32 [B, 3, size, size]."""
    if isinstance(loader.dataset, ImageDataset):
        batch = loader.dataset.transform.finish(batch)
    return batch["pixel_values"] if isinstance(batch, dict) else batch[0]
