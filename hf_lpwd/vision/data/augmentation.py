"""Augmentations that each image gets for itself, by random numbers that are the image's own.

What is drawn is drawn on the CPU, as integers; what is done with it is done where the images lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

#: Images of one size as [B, 3, H, W], or of any sizes as a list of [3, H, W]; uint8.
Images = Tensor | Sequence[Tensor]

# As torchvision.transforms.RandomResizedCrop: share of the area, aspect ratio, tries before the central crop.
_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
_BLOCK = 256
#: Random numbers that each of `AUGMENTATIONS` takes for an image.
NUM_UNIFORMS = {"none": 0, "crop": 2, "crop_flip": 3, "random_resized_crop": 3 + 2 * _TRIES}


def uniforms(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """Returns the random numbers of the given samples in one epoch, from a counter-based generator.

    They depend on seed, epoch and the sample's index alone: not on the batch, the worker, the process, or
    what was drawn before, so a resumed run sees the same images.

    Args:
        seed: Seed of the run, at least 0.
        epoch: Epoch, from 0.
        indices: Index of each sample in its dataset.
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


def draw_places(sizes: np.ndarray, draws: np.ndarray) -> Tensor:
    """Returns what `crop_and_flip` does to each image.

    Args:
        sizes: Height and width, [2] for all images or [B, 2].
        draws: Uniform numbers [B, 0], [B, 2] to crop, or [B, 3] to crop and flip.

    Returns:
        int64 tensor of the shape of `draws`: top and left, from 0 to twice the padding, and 1 to flip.
    """
    places = np.empty(draws.shape, dtype=np.int64)
    places[:, :2] = draws[:, :2] * (2 * _padding(sizes) + 1) if draws.shape[1] else 0
    places[:, 2:] = draws[:, 2:] < 0.5
    return torch.from_numpy(places)


def _padding(sizes: np.ndarray) -> np.ndarray:
    return np.maximum(1, np.rint(np.asarray(sizes) / 8).astype(np.int64))


def crop_and_flip(images: Tensor, places: Tensor) -> Tensor:
    """Shifts and mirrors images [B, C, H, W] as `draw_places` says."""
    if places.shape[1]:
        images = shift_crop(images, places[:, :2])
    return horizontal_flip(images, places[:, 2]) if places.shape[1] == 3 else images


def shift_crop(images: Tensor, places: Tensor) -> Tensor:
    """Moves each image by up to an eighth of its side (at least a pixel) each way, zeros moving in.

    Args:
        images: [B, C, H, W].
        places: Top and left of the crop from the zero-padded image, int64 [B, 2].
    """
    height, width = images.shape[-2:]
    pad_y, pad_x = _padding(np.array([height, width])).tolist()
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    # windows is a view of all places: only the chosen ones are copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, places[:, 0], places[:, 1]]


def horizontal_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirrors those of the uint8 images [B, C, H, W] whose entry in `flipped` [B] is 1, not 0."""
    # Exact, as unsigned integers wrap, and takes a third of the time of torch.where.
    return images + (images.flip(-1) - images) * flipped[:, None, None, None].to(images.dtype)


def crop_boxes(heights: np.ndarray, widths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns the boxes of `torchvision.transforms.RandomResizedCrop`, for each image its own.

    Args:
        heights: Height of each image [B].
        widths: Width of each image [B].
        draws: Uniform numbers [B, 22]: ten tries at area and ratio, then the place.

    Returns:
        int64 array [B, 4]: top, left, height, width.
    """
    size = np.stack([heights, widths])[..., None]
    height, width = size
    low, high = np.log(_RATIO)
    ratio = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    area = height * width * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * draws[:, :_TRIES])
    # After the tries, the last column is the fallback: the largest central crop of an allowed ratio.
    crop = np.empty((2, len(draws), _TRIES + 1))
    crop[:, :, :_TRIES] = np.sqrt(area / ratio), np.sqrt(area * ratio)
    nearest = np.clip(width / height, *_RATIO)
    crop[:, :, _TRIES:] = np.minimum(height, width / nearest), np.minimum(width, height * nearest)
    crop = np.rint(crop)
    fits = np.logical_and.reduce((crop > 0) & (crop <= size))
    fits[:, _TRIES] = True
    first = fits.argmax(axis=1)
    crop = crop[:, np.arange(len(draws)), first]
    slack = size[..., 0] - crop
    corner = np.floor(draws[:, 2 * _TRIES : 2 * _TRIES + 2].T * (slack + 1))
    corner = np.where(first == _TRIES, slack // 2, corner)
    return np.concatenate([corner, crop]).T.astype(np.int64)


def resize_each(images: Images, size: tuple[int, int], flipped: np.ndarray) -> Tensor:
    """Resizes each image to `size` (bilinear, antialiased), and mirrors some; uint8 [B, 3, *size].

    One call an image: every part has another size, and torchvision's uint8 kernel is faster than a batched
    gather in float.

    Args:
        images: The parts that `random_resized_crop` keeps of the images.
        size: Height and width.
        flipped: Whether to mirror each, bool [B].
    """
    resized = (tvf.resize(image, list(size)) for image in images)
    return torch.stack(
        [image.flip(-1) if flip else image for image, flip in zip(resized, flipped, strict=True)]
    )


def rand_augment(images: Images, draws: np.ndarray, magnitude: int) -> Images:
    """Applies `torchvision.transforms.v2.RandAugment` to each uint8 image by itself.

    Args:
        images: On the CPU.
        draws: Uniform numbers [B], each the seed of its image.
        magnitude: From 0 to 30.
    """
    # Bilinear as in torchvision's reference training script.
    augment = v2.RandAugment(magnitude=magnitude, interpolation=InterpolationMode.BILINEAR)
    augmented = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, _seeds(draws), strict=True):
            torch.default_generator.manual_seed(seed)
            augmented.append(augment(image))
    return torch.stack(augmented) if isinstance(images, Tensor) else augmented


def draw_erasing(draws: np.ndarray, probability: float, size: tuple[int, int]) -> Tensor:
    """Draws what `torchvision.transforms.v2.RandomErasing` would erase of each image.

    Args:
        draws: Uniform numbers [B, 2]: whether to erase, and the seed of the box.
        probability: That an image loses a box.
        size: Height and width of the images.

    Returns:
        int64 tensor [B, 4]: top, left, height, width; zeros where nothing is erased.
    """
    erasing = v2.RandomErasing()
    image = torch.empty(1).expand(3, *size)
    boxes = torch.zeros(len(draws), 4, dtype=torch.int64)
    seeds = _seeds(draws[:, 1])
    with torch.random.fork_rng(devices=[]):
        for row in np.flatnonzero(draws[:, 0] < probability).tolist():
            torch.default_generator.manual_seed(seeds[row])
            box = erasing.make_params([image])
            if box["v"] is not None:  # None: ten tries found no box that fits
                boxes[row] = torch.tensor([box[side] for side in "ijhw"])
    return boxes


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Sets a box of each normalised image [B, C, H, W] to 0, the mean; `boxes` as of `draw_erasing`."""
    top, left, height, width = boxes.T[:, :, None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    of_rows = (rows >= top) & (rows < top + height)
    of_columns = (columns >= left) & (columns < left + width)
    return images.masked_fill(of_rows[:, None, :, None] & of_columns[:, None, None, :], 0.0)


def _seeds(draws: np.ndarray) -> list[int]:
    return (draws * 2**53).astype(np.int64).tolist()
