"""Batch of uint8 pictures -> what the model takes: per-sample augmentation, then the image processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf
from transformers import TorchvisionBackend

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data_args import AUGMENTATIONS

#: Pictures of one size as [B, 3, H, W], or of any sizes as a list of [3, H, W]; uint8.
Images = Tensor | Sequence[Tensor]

# As torchvision.transforms.RandomResizedCrop: share of the area, aspect ratio, tries before the central crop.
_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
_BLOCK = 256
_NUM_UNIFORMS = {"none": 0, "crop": 2, "crop_flip": 3, "random_resized_crop": 3 + 2 * _TRIES}


def uniforms(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """Returns the random numbers of the given samples in one epoch, from a counter-based generator.

    They depend on seed, epoch and the sample's index alone: not on the batch, the worker, the process, or
    what was drawn before, so a resumed run sees the same pictures.

    Args:
        seed: Seed of the run, at least 0.
        epoch: Epoch, from 0.
        indices: Index of each sample in its data set.
        count: Numbers a sample.

    Returns:
        float64 array [len(indices), count] in [0, 1).
    """
    return np.stack([_block(seed, epoch, index // _BLOCK, count)[index % _BLOCK] for index in indices])


@lru_cache(maxsize=512)
def _block(seed: int, epoch: int, block: int, count: int) -> np.ndarray:
    """The numbers of `_BLOCK` samples: a generator for each sample would take longer than its crop."""
    # Blocks are 2**64 apart in the generator's counter, out of reach of each other.
    return Generator(Philox(key=[seed, epoch], counter=[0, block, 0, 0])).random((count, _BLOCK)).T


def shift_crop(images: Tensor, draws: np.ndarray) -> Tensor:
    """Moves each picture by up to an eighth of its side (at least a pixel) each way, zeros moving in.

    Equals a crop of the same size at a random place of the zero-padded picture.

    Args:
        images: [B, C, H, W].
        draws: Uniform numbers [B, 2], for the vertical and the horizontal shift.
    """
    height, width = images.shape[-2:]
    pad_y, pad_x = (max(1, round(side / 8)) for side in (height, width))
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top, left = torch.from_numpy((draws * (2 * pad_y + 1, 2 * pad_x + 1)).astype(np.int64)).T
    # windows is a view of all places: only the chosen ones are copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images)), :, top, left]


def horizontal_flip(images: Tensor, draws: np.ndarray) -> Tensor:
    """Mirrors the pictures [B, C, H, W] whose uniform number in `draws` [B] is below a half."""
    flipped = torch.from_numpy(draws < 0.5)[:, None, None, None]
    return torch.where(flipped, images.flip(-1), images)


def crop_boxes(heights: np.ndarray, widths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns the boxes of `torchvision.transforms.RandomResizedCrop`, for each picture its own.

    Args:
        heights: Height of each picture [B].
        widths: Width of each picture [B].
        draws: Uniform numbers [B, 22]: ten tries at area and ratio, then the place.

    Returns:
        int64 array [B, 4]: top, left, height, width.
    """
    heights, widths = heights[:, None], widths[:, None]
    low, high = np.log(_RATIO)
    ratio = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    area = heights * widths * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * draws[:, :_TRIES])
    # After the tries, the last column is the fallback: the largest central crop of an allowed ratio.
    nearest = np.clip(widths / heights, *_RATIO)
    crop_w = np.rint(np.hstack([np.sqrt(area * ratio), np.minimum(widths, heights * nearest)]))
    crop_h = np.rint(np.hstack([np.sqrt(area / ratio), np.minimum(heights, widths / nearest)]))
    fits = (crop_w > 0) & (crop_w <= widths) & (crop_h > 0) & (crop_h <= heights)
    fits[:, -1] = True
    first = fits.argmax(axis=1)[:, None]
    crop_w, crop_h = np.take_along_axis(crop_w, first, 1), np.take_along_axis(crop_h, first, 1)
    slack = np.hstack([heights - crop_h, widths - crop_w])
    corner = np.where(
        first == _TRIES, slack // 2, np.floor(draws[:, 2 * _TRIES : 2 * _TRIES + 2] * (slack + 1))
    )
    return np.hstack([corner, crop_h, crop_w]).astype(np.int64)


def random_resized_crop(images: Images, draws: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resizes a random part of each picture to `size` (bilinear, antialiased), uint8 [B, 3, *size].

    One call a picture: every part has another size, and torchvision's uint8 kernel is faster than a batched
    gather in float.
    """
    shape = np.array([image.shape[-2:] for image in images])
    boxes = crop_boxes(shape[:, 0], shape[:, 1], draws)
    crops = (
        tvf.resized_crop(image, *box, list(size)) for image, box in zip(images, boxes.tolist(), strict=True)
    )
    return torch.stack(list(crops))


class ImageTransform:
    """Augments pictures, each in its own way, and hands them to the model's image processor.

    Without augmentation the result equals that of the processor, and so of the `image-classification`
    pipeline, for the same pictures. `random_resized_crop` replaces the processor's resizing and cropping.

    Args:
        processor: Image processor of the model.
        augmentation: One of `AUGMENTATIONS`.

    Raises:
        BadInputError: If there is no such augmentation, or if `random_resized_crop` meets a processor that
            does not resize to a fixed size.
    """

    def __init__(self, processor: Any, augmentation: str = "none") -> None:
        if augmentation not in AUGMENTATIONS:
            raise BadInputError(
                f"augmentation must be one of {', '.join(AUGMENTATIONS)}, not {augmentation!r}"
            )
        self.processor = processor
        self.augmentation = augmentation
        self.num_uniforms = _NUM_UNIFORMS[augmentation]
        self._same: dict[tuple[int, int, bool], bool] = {}
        if augmentation == "random_resized_crop":
            shape, other = (self._process(_noise(*side)).shape for side in ((40, 50), (70, 60)))
            if shape != other:
                raise BadInputError(
                    "augmentation random_resized_crop needs an image processor that resizes to a fixed size"
                )
            self.size = (shape[-2], shape[-1])

    def __call__(self, images: Images, draws: np.ndarray | None = None) -> Tensor:
        """Returns the pixel values, float32 [B, 3, h, w].

        Args:
            images: uint8 pictures.
            draws: Uniform numbers [B, num_uniforms]; None without augmentation.
        """
        if self.augmentation == "none":
            return self._apply(images)
        assert draws is not None
        if self.augmentation == "random_resized_crop":
            crops = random_resized_crop(images, draws, self.size)
            return self._apply(horizontal_flip(crops, draws[:, -1]), resized=True)
        if isinstance(images, Tensor):
            return self._apply(self._shift(images, draws))
        rows = zip(images, draws, strict=True)
        return self._apply([self._shift(image[None], row[None])[0] for image, row in rows])

    def _shift(self, images: Tensor, draws: np.ndarray) -> Tensor:
        images = shift_crop(images, draws[:, :2])
        return horizontal_flip(images, draws[:, 2]) if self.augmentation == "crop_flip" else images

    def _apply(self, images: Images, resized: bool = False) -> Tensor:
        """Runs the processor; its steps one by one on the whole batch where that gives the same."""
        if not isinstance(images, Tensor):
            return self._process(images, resized)
        height, width = images.shape[-2:]
        key = (height, width, resized)
        if key not in self._same:
            noise = _noise(height, width)
            try:
                self._same[key] = torch.equal(self._steps(noise, resized), self._process(noise, resized))
            except (TypeError, ValueError):  # the processor has a resize of its own kind
                self._same[key] = False
        return self._steps(images, resized) if self._same[key] else self._process(images, resized)

    def _steps(self, images: Tensor, resized: bool) -> Tensor:
        """Resizes, rescales and normalises; twice as fast as the processor, which stacks the batch twice."""
        processor = self.processor
        if not isinstance(processor, TorchvisionBackend):
            return self._normalize(images)
        if processor.do_resize and not resized:
            images = processor.resize(images, size=processor.size, resample=processor.resample)
        return self._normalize(images)

    def _process(self, images: Images, resized: bool = False) -> Tensor:
        options: dict[str, Any] = {"return_tensors": "pt"}
        if resized and hasattr(self.processor, "data_config"):  # timm's processor takes no options
            return self._normalize(torch.stack(list(images)))
        if resized:
            options["do_resize"] = False
        if isinstance(self.processor, TorchvisionBackend):
            batch = self.processor(list(images), input_data_format="channels_first", **options)
        else:
            # These, timm's among them, resize with PIL: only a PIL picture gives the pipeline's result.
            batch = self.processor([tvf.to_pil_image(image) for image in images], **options)
        return batch["pixel_values"]

    def _normalize(self, images: Tensor) -> Tensor:
        """Rescales and normalises by the processor's own settings."""
        processor = self.processor
        if isinstance(processor, TorchvisionBackend):
            return processor.rescale_and_normalize(
                images,
                processor.do_rescale,
                processor.rescale_factor,
                processor.do_normalize,
                tuple(processor.image_mean),
                tuple(processor.image_std),
            )
        config = getattr(processor, "data_config", None)
        mean, std = (config["mean"], config["std"]) if config else (processor.image_mean, processor.image_std)
        return tvf.normalize(images.float().div_(255), list(mean), list(std), inplace=True)


def _noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
