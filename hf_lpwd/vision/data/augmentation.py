"""Augmentations of single images, with random numbers for each, and of batches: MixUp and CutMix.

Random numbers become offsets and boxes on the CPU; these are applied where the images are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

#: Images of one size as [B, 3, H, W], or of any sizes as a list of [3, H, W]; uint8.
Images = Tensor | Sequence[Tensor]

#: Pixel values [B, 3, h, w] and labels int64 [B] -> mixed pixel values, and probabilities [B, classes].
Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# As torchvision.transforms.RandomResizedCrop: area, aspect ratio, tries before the central crop.
_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
_BLOCK = 256
#: Random numbers that each of `AUGMENTATIONS` takes for an image.
RANDOM_NUMBERS = {"none": 0, "crop": 2, "crop_flip": 3, "random_resized_crop": 3 + 2 * _TRIES}


def random_numbers(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """Returns `count` random numbers in [0, 1) for each sample, float64 [len(indices), count].

    They come from a counter-based generator and depend on seed, epoch and the sample's index alone: not on
    batch, worker or process. So a resumed run sees the same images.
    """
    return np.stack([_block(seed, epoch, index // _BLOCK, count)[index % _BLOCK] for index in indices])


@lru_cache(maxsize=512)
def _block(seed: int, epoch: int, block: int, count: int) -> np.ndarray:
    """The numbers of `_BLOCK` samples: a generator for each sample would take longer than its crop."""
    # Blocks are 2**64 apart in the generator's counter, out of reach of each other.
    return Generator(Philox(key=[seed, epoch], counter=[0, block, 0, 0])).random((count, _BLOCK)).T


def crop_offsets(size: Sequence[int], numbers: np.ndarray) -> Tensor:
    """Returns what `crop_and_flip` does to each image.

    Args:
        size: Height and width of the images.
        numbers: Random numbers [B, 0], [B, 2] to crop, or [B, 3] to crop and flip.

    Returns:
        int64 tensor of the shape of `numbers`: top and left, from 0 to twice the padding, and 1 to flip.
    """
    offsets = np.empty(numbers.shape, dtype=np.int64)
    offsets[:, :2] = numbers[:, :2] * (2 * _padding(size) + 1)[: numbers.shape[1]]
    offsets[:, 2:] = numbers[:, 2:] < 0.5
    return torch.from_numpy(offsets)


def _padding(size: Sequence[int]) -> np.ndarray:
    return np.maximum(1, np.rint(np.array(size) / 8).astype(np.int64))


def crop_and_flip(images: Tensor, offsets: Tensor) -> Tensor:
    """Shifts and mirrors images [B, C, H, W] by their `crop_offsets`."""
    if offsets.shape[1]:
        images = shift_crop(images, offsets[:, :2])
    return horizontal_flip(images, offsets[:, 2]) if offsets.shape[1] == 3 else images


def shift_crop(images: Tensor, offsets: Tensor) -> Tensor:
    """Moves each image by up to an eighth of its side (at least a pixel) each way, zeros moving in.

    Args:
        images: [B, C, H, W].
        offsets: Top and left of the crop from the zero-padded image, int64 [B, 2].
    """
    height, width = images.shape[-2:]
    pad_y, pad_x = _padding((height, width)).tolist()
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    # A view of all crops: only the chosen ones are copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


def horizontal_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirrors the uint8 images [B, C, H, W] whose entry in `flipped` [B] is 1."""
    # Exact, as unsigned integers wrap, and takes a third of the time of torch.where.
    return images + (images.flip(-1) - images) * flipped[:, None, None, None].to(images.dtype)


def crop_boxes(heights: np.ndarray, widths: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns a box of `torchvision.transforms.RandomResizedCrop` for each image.

    Args:
        heights: Height of each image [B].
        widths: Width of each image [B].
        numbers: Random numbers [B, 22]: ten tries at area and ratio, then top and left.

    Returns:
        int64 array [B, 4]: top, left, height, width.
    """
    size = np.stack([heights, widths])[..., None]
    height, width = size
    low, high = np.log(_RATIO)
    ratio = np.exp(low + (high - low) * numbers[:, _TRIES : 2 * _TRIES])
    area = height * width * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * numbers[:, :_TRIES])
    # After the tries, the last column is the fallback: the largest central crop of an allowed ratio.
    crop = np.empty((2, len(numbers), _TRIES + 1))
    crop[:, :, :_TRIES] = np.sqrt(area / ratio), np.sqrt(area * ratio)
    nearest = np.clip(width / height, *_RATIO)
    crop[:, :, _TRIES:] = np.minimum(height, width / nearest), np.minimum(width, height * nearest)
    crop = np.rint(crop)
    fits = np.logical_and.reduce((crop > 0) & (crop <= size))
    fits[:, _TRIES] = True
    first = fits.argmax(axis=1)
    crop = crop[:, np.arange(len(numbers)), first]
    slack = size[..., 0] - crop
    corner = np.floor(numbers[:, 2 * _TRIES : 2 * _TRIES + 2].T * (slack + 1))
    corner = np.where(first == _TRIES, slack // 2, corner)
    return np.concatenate([corner, crop]).T.astype(np.int64)


def resize_each(images: Images, size: tuple[int, int], flipped: np.ndarray) -> Tensor:
    """Resizes each image (bilinear, antialiased) and mirrors it if `flipped` [B]; uint8 [B, 3, *size]."""
    # One call an image: torchvision's uint8 kernel is faster than a batched gather in float.
    resized = (tvf.resize(image, list(size)) for image in images)
    return torch.stack(
        [image.flip(-1) if flip else image for image, flip in zip(resized, flipped, strict=True)]
    )


def rand_augment(images: Images, numbers: np.ndarray, magnitude: int) -> Images:
    """Applies `torchvision.transforms.v2.RandAugment` to each uint8 image; its number [B] is its seed."""
    # Bilinear as in torchvision's reference training script.
    augment = v2.RandAugment(magnitude=magnitude, interpolation=InterpolationMode.BILINEAR)
    augmented = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, _seeds(numbers), strict=True):
            torch.default_generator.manual_seed(seed)
            augmented.append(augment(image))
    return torch.stack(augmented) if isinstance(images, Tensor) else augmented


def erase_boxes(numbers: np.ndarray, probability: float, size: tuple[int, int]) -> Tensor:
    """Returns the box that `torchvision.transforms.v2.RandomErasing` erases of each image.

    Args:
        numbers: Random numbers [B, 2]: whether to erase, and the seed of the box.
        probability: That an image loses a box.
        size: Height and width of the images.

    Returns:
        int64 tensor [B, 4]: top, left, height, width; zeros where nothing is erased.
    """
    erasing = v2.RandomErasing()
    image = torch.empty(1).expand(3, *size)
    boxes = torch.zeros(len(numbers), 4, dtype=torch.int64)
    seeds = _seeds(numbers[:, 1])
    with torch.random.fork_rng(devices=[]):
        for row in np.flatnonzero(numbers[:, 0] < probability).tolist():
            torch.default_generator.manual_seed(seeds[row])
            box = erasing.make_params([image])
            if box["v"] is not None:  # None: ten tries found no box that fits
                boxes[row] = torch.tensor([box[side] for side in "ijhw"])
    return boxes


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Sets a box of each normalised image [B, C, H, W] to 0, the mean; `boxes` from `erase_boxes`."""
    top, left, height, width = boxes.T[:, :, None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    of_rows = (rows >= top) & (rows < top + height)
    of_columns = (columns >= left) & (columns < left + width)
    return images.masked_fill(of_rows[:, None, :, None] & of_columns[:, None, None, :], 0.0)


def _seeds(numbers: np.ndarray) -> list[int]:
    return (numbers * 2**53).astype(np.int64).tolist()


def make_mixer(num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0) -> Mixer | None:
    """Returns torchvision's MixUp or CutMix, with both a random one for each batch, with neither None.

    They use torch's global generator on the CPU, which checkpoints restore, and mix each image with the one
    before it in the batch.

    Args:
        num_classes: Number of classes.
        mixup_alpha: Of MixUp's Beta distribution; 0 for no MixUp.
        cutmix_alpha: Of CutMix's; 0 for no CutMix.
    """
    mixers = [
        mixer(alpha=alpha, num_classes=num_classes)
        for mixer, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        if alpha > 0
    ]
    return v2.RandomChoice(mixers) if mixers else None


def mixed_loss(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of mixed or plain labels; transformers' own takes probabilities for several labels each.

    Args:
        outputs: What the model returns; its `logits` are [B, C].
        labels: Probabilities [B, C], or classes int64 [B].
        num_items_in_batch: Samples in all batches and processes of the step, by which the sum over this batch
            is divided; default: those of this batch.
        label_smoothing: Fraction of the probability that is spread evenly over the classes.
    """
    logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()
    total = nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    # Under nn.DataParallel the Trainer gives a part of the number for each GPU.
    count = len(labels) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).sum()
    return total / count


def training_loss(model: nn.Module, batch: dict[str, Tensor], mix: Mixer | None) -> Tensor:
    """Mean loss of a batch in a custom training loop.

    Args:
        model: An image classifier.
        batch: Finished `pixel_values`, and `labels`.
        mix: From `make_mixer`; without it, the loss is the model's own.
    """
    if mix is None:
        return model(**batch).loss
    pixel_values, labels = mix(batch["pixel_values"], batch["labels"])
    return mixed_loss(model(pixel_values=pixel_values), labels)
