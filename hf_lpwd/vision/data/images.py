"""The dataset that a DataLoader reads: images decoded once where they fit in memory, served in batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_lpwd.messages import BadInputError, counted, escaped
from hf_lpwd.vision.data.augmentation import Images, random_numbers
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.decoding import URL, Scale, read_images
from hf_lpwd.vision.data.facts import list_names
from hf_lpwd.vision.data.sample import default_augmentation, find_scale, fits_in_memory, undecoded
from hf_lpwd.vision.data.splits import Splits
from hf_lpwd.vision.data.transforms import ImageTransform

_CHUNK = 256

logger = logging.getLogger(__name__)


class BadImageError(BadInputError):
    """An image that cannot be decoded."""

    def __init__(self, message: str) -> None:
        # A DataLoader recreates a worker's error from its traceback: the last line is ours.
        super().__init__(message.rstrip().splitlines()[-1].rpartition("BadImageError: ")[-1])


class ImageDataset(torch.utils.data.Dataset):
    """Images and labels of one split, ready for the model.

    A stock `DataLoader` passes all indices of a batch to `__getitems__`, which augments them at once; use it
    with `collate_fn=collate`. Images that take less than half of the free memory are decoded once, here, and
    shared by the workers; others are decoded by the workers when they are needed.

    Args:
        dataset: Rows with a `datasets.Image` and a `datasets.ClassLabel` column.
        transform: From uint8 images to pixel values.
        image_column: Column of the images.
        label_column: Column of the labels.
        source: Name of the split that the rows come from, for errors.
        role: What they are for, for warnings; default: `source`.
        rows: Their numbers in that split, for errors; default 0, 1, ...
        seed: Seed of the augmentation.
        scale: Which stored values of more than 8 bits are white; default: decided from these images.
        skip_bad_images: Leave out what cannot be decoded; `num_skipped` counts it.
        in_memory: Whether to decode once; by default, whether it fits.
        unfinished: Serve batches that `transform.finish` makes complete, on the device where the model is,
            instead of complete ones; None: if they are not kept in memory, as workers hand on uint8 in a
            quarter of the time.

    Raises:
        BadImageError: If an image cannot be decoded, with split and row; from the constructor if decoded
            once, else when the image is asked for.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: ImageTransform,
        *,
        image_column: str = "image",
        label_column: str = "label",
        source: str = "train",
        role: str | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
        seed: int = 0,
        scale: Scale | None = None,
        skip_bad_images: bool = False,
        in_memory: bool | None = None,
        unfinished: bool | None = False,
    ) -> None:
        self.transform = transform
        self.seed = seed
        self._source = source
        self._rows = np.arange(len(dataset)) if rows is None else np.asarray(rows)
        # Shared, so that workers that outlive an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._column = image_column
        self._files: datasets.Dataset | None = undecoded(dataset, image_column)
        self._scale = scale or find_scale([self._files], image_column) or Scale()
        labels = torch.tensor(dataset.select_columns([label_column])[:][label_column], dtype=torch.int64)
        self.in_memory = fits_in_memory(self._files, image_column) if in_memory is None else in_memory
        self.unfinished = not self.in_memory if unfinished is None else unfinished

        kept, shapes, pixels = list(range(len(labels))), [], bytearray()
        if self.in_memory or skip_bad_images:
            kept = []
            for index, image in self._decode_all(skip_bad_images):
                kept.append(index)
                if self.in_memory:
                    shapes.append(image.shape[1:])
                    pixels += image.tobytes()
        self.num_skipped = len(labels) - len(kept)
        if not kept:
            raise BadImageError(f"{source}: no image can be decoded")
        self._kept = np.array(kept)
        self.labels = labels[self._kept]
        emptied = np.setdiff1d(labels, self.labels)
        if len(emptied):
            names = list_names(dataset.features[label_column].int2str(emptied.tolist()))
            classes = counted(len(emptied), "class", "classes")
            logger.warning("%s: no image of %s can be decoded: %s", role or source, classes, names)
        if self.in_memory:
            self._files = None
            self._store(pixels, shapes)

    @classmethod
    def from_split(
        cls,
        splits: Splits,
        role: str,
        processor: Any,
        args: DataTrainingArguments,
        *,
        seed: int = 0,
        unfinished: bool = False,
    ) -> ImageDataset:
        """Builds the dataset of `"train"`, which is augmented, `"validation"` or `"test"`.

        Its batches are for `transform.finish`, as those of images that are not kept in memory are always
        unfinished.
        """
        augment: dict[str, Any] = {}
        if role == "train":
            augment = {
                "augmentation": args.augmentation or default_augmentation(splits),
                "rand_augment": args.ra_magnitude if args.auto_augment else None,
                "random_erase": args.random_erase,
            }
        return cls(
            getattr(splits, role),
            ImageTransform(processor, **augment),
            image_column=splits.image_column,
            label_column=splits.label_column,
            source=splits.sources[role],
            role=role,
            rows=splits.rows[role],
            seed=seed,
            scale=(splits.facts.images and splits.facts.images.scale) or Scale(),
            skip_bad_images=args.skip_bad_images,
            unfinished=unfinished or None,
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, on which the random numbers depend; in a `Trainer`, `EpochCallback` does."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Returns a batch: `pixel_values` float32 [B, 3, h, w] and `labels` int64 [B].

        If `unfinished`, `pixel_values` are as `ImageTransform.start` leaves them, with what it adds.
        """
        numbers = None
        if self.transform.num_random:
            numbers = random_numbers(self.seed, int(self._epoch), indices, self.transform.num_random)
        batch = self.transform.start(self.images(indices, numbers), numbers)
        batch["labels"] = self.labels[list(indices)]
        return batch if self.unfinished else self.transform.finish(batch)

    def images(self, indices: Sequence[int], numbers: np.ndarray | None = None) -> Images:
        """Returns the images as decoded, uint8; with `numbers`, the parts that the augmentation keeps.

        [B, 3, H, W] if all of the dataset are in memory and of one size, and whole; else a list, so that
        batches are alike.

        Args:
            indices: Which images.
            numbers: Random numbers [B, num_random] of the transform.
        """
        if self._files is not None:
            rows = self._kept[list(indices)].tolist()
            threads = torch.get_num_threads()  # one, in a worker of a DataLoader
            decoded = self._decode(rows, numbers=numbers, threads=threads)
            return [torch.from_numpy(image) for _, image in decoded]
        if self._same_size is not None and (numbers is None or self.transform.size is None):
            # Copies whole images, where indexing goes by the byte.
            return self._same_size.index_select(0, torch.tensor(list(indices)))
        whole = [
            self._pixels[start : start + 3 * height * width].view(3, height, width)
            for start, height, width in self._extents[list(indices)].tolist()
        ]
        return self.transform.cut(whole, numbers)

    def _store(self, pixels: bytearray, shapes: list[tuple[int, ...]]) -> None:
        """Keeps the pixels as one tensor: forked workers share it, others get it through shared memory."""
        self._pixels = torch.frombuffer(pixels, dtype=torch.uint8)
        sizes = torch.tensor(shapes)
        lengths = 3 * sizes.prod(dim=1)
        self._extents = torch.column_stack([lengths.cumsum(0) - lengths, sizes])
        self._same_size = self._pixels.view(-1, 3, *shapes[0]) if len(set(shapes)) == 1 else None

    def _decode(
        self, rows: Sequence[int], skip: bool = False, numbers: np.ndarray | None = None, threads: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields row and image, or its part by `numbers`; leaves out what cannot be decoded if `skip`."""
        assert self._files is not None
        size = self.transform.size
        boxes: list[Any] = [None] * len(rows)
        if numbers is not None and size is not None:
            boxes = [partial(self.transform.box, row) for row in numbers]
        cells = self._files[rows][self._column]
        images = read_images(cells, boxes, size, threads, self._scale)
        for row, cell, image in zip(rows, cells, images, strict=True):
            if not isinstance(image, ValueError):
                yield row, image
            elif not skip:
                path = (cell and cell["path"]) or ""
                # Of a URL the host says most, of a path its end.
                shown = f" ({escaped(path[:120] if URL.match(path) else path[-120:])})" if path else ""
                raise BadImageError(
                    f"{self._source} row {self._rows[row]}{shown}: the image cannot be decoded: {image}"
                ) from image

    def _decode_all(self, skip: bool) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self._rows), _CHUNK):
            yield from self._decode(range(start, min(start + _CHUNK, len(self._rows))), skip)


def finishes_later(device: torch.device) -> bool:
    """Whether augmenting, resizing and normalising are left to the device that the model is on."""
    return device.type != "cpu"


class EpochCallback(TrainerCallback):
    """Calls `set_epoch` on the training dataset.

    accelerate skips it in distributed runs and in runs that resume within an epoch: its
    `DataLoaderShard.set_epoch` calls the dataset's only where there is no sampler to call.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the epoch of the training dataset, if it has one."""
        dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if dataset is not None and hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


def collate(batch: dict[str, Tensor] | list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Passes on a batch from `ImageDataset.__getitems__`; stacks a list of samples."""
    if isinstance(batch, dict):
        return batch
    if batch and not isinstance(batch[0], dict):
        raise TypeError("collate needs remove_unused_columns=False in the training arguments")
    return {name: torch.stack([sample[name] for sample in batch]) for name in batch[0]}
