"""Batch of uint8 images -> what the model takes: augmentation of each image, then the image processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf
from transformers import TorchvisionBackend
from transformers.image_utils import PILImageResampling

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.augmentation import (
    RANDOM_NUMBERS,
    Images,
    crop_and_flip,
    crop_boxes,
    crop_offsets,
    erase,
    erase_boxes,
    rand_augment,
    resize_each,
)
from hf_lpwd.vision.data.data_args import AUGMENTATIONS

#: Sizes at which a processor is tried out: smaller and larger than what models take, upright and not.
_TRIED = ((40, 50), (70, 60), (300, 420))


class ImageTransform:
    """Augments images, each with its first random numbers, and gives them to the model's image processor.

    Without augmentation the result equals that of the processor, and so of the `image-classification`
    pipeline, for the same images. `random_resized_crop` replaces the processor's resizing and cropping.

    There are three steps: `cut`, which decoding can do too, by `box`; `start`, in the workers of a
    DataLoader; and `finish`, on the device of the model. `start` leaves to `finish` all that gives the same
    result there, so that uint8 values are transferred.

    Args:
        processor: Image processor of the model.
        augmentation: One of `AUGMENTATIONS`.
        rand_augment: Magnitude of `torchvision.transforms.v2.RandAugment`, after the augmentation; None: off.
        random_erase: Probability of `torchvision.transforms.v2.RandomErasing`, after normalising.

    Raises:
        BadInputError: If there is no such augmentation, or if `random_resized_crop` meets a processor that
            does not resize to a fixed size.
    """

    def __init__(
        self,
        processor: Any,
        augmentation: str = "none",
        *,
        rand_augment: int | None = None,
        random_erase: float = 0.0,
    ) -> None:
        if augmentation not in AUGMENTATIONS:
            raise BadInputError(
                f"augmentation must be one of {', '.join(AUGMENTATIONS)}, not {augmentation!r}"
            )
        self.processor = processor
        self.augmentation = augmentation
        self.rand_augment = rand_augment
        self.random_erase = random_erase
        self._num_first = RANDOM_NUMBERS[augmentation]
        #: How many random numbers an image needs.
        self.num_random = self._num_first + (rand_augment is not None) + 2 * (random_erase > 0)
        self._sizes: dict[tuple[int, int, bool], tuple[int, int] | None] = {}
        #: Height and width to which parts of the images are resized; None if no part is cut out.
        self.size: tuple[int, int] | None = None
        if augmentation == "random_resized_crop":
            shape, other = (self._process(_noise(*side)).shape for side in _TRIED[:2])
            if shape != other:
                raise BadInputError(
                    "augmentation random_resized_crop needs an image processor that resizes to a fixed size"
                )
            self.size = (shape[-2], shape[-1])

    def __call__(self, images: Images, numbers: np.ndarray | None = None) -> Tensor:
        """Returns the pixel values, float32 [B, 3, h, w].

        Args:
            images: uint8 images.
            numbers: Random numbers [B, num_random]; None without augmentation.
        """
        return self.finish(self.start(self.cut(images, numbers), numbers))["pixel_values"]

    def box(self, numbers: np.ndarray, height: int, width: int) -> list[int]:
        """Returns top, left, height and width of the part of one image that `cut` keeps."""
        return crop_boxes(np.array([height]), np.array([width]), numbers[None, : self._num_first])[0].tolist()

    def cut(self, images: Images, numbers: np.ndarray | None) -> Images:
        """Returns the part of each uint8 image that `random_resized_crop` keeps, not yet resized."""
        if self.size is None or numbers is None:
            return images
        sizes = np.array([image.shape[-2:] for image in images])
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], numbers[:, : self._num_first]).tolist()
        return [tvf.crop(image, *box) for image, box in zip(images, boxes, strict=True)]

    def start(self, images: Images, numbers: np.ndarray | None = None) -> dict[str, Tensor]:
        """Does what has to be done on the CPU.

        Args:
            images: uint8 images, as `cut` returns them.
            numbers: Random numbers [B, num_random]; None without augmentation.

        Returns:
            A batch for `finish`: `pixel_values`, uint8 if they are still to be rescaled and normalised; with
            `offsets`, see `crop_offsets`, if they are still to be cropped, flipped and resized; with `erase`,
            see `erase_boxes`, if boxes are to be erased.
        """
        numbers = np.empty((len(images), 0)) if numbers is None else numbers
        first = numbers[:, : self._num_first]
        resized = self.size is not None
        if self.size is not None:
            images, first = resize_each(images, self.size, first[:, -1] < 0.5), first[:, :0]
        size = self._size_by_steps(images, resized)
        resize_later = size is not None and isinstance(images, Tensor) and not resized and not self._lanczos
        if self.rand_augment is not None or not resize_later:
            images, first = _crop_and_flip_each(images, first), first[:, :0]
        if self.rand_augment is not None:
            images = rand_augment(images, numbers[:, self._num_first], self.rand_augment)
        batch: dict[str, Tensor] = {}
        if size is None:
            batch["pixel_values"] = self._process(images, resized)
        elif isinstance(images, Tensor) and (resized or resize_later):
            batch["pixel_values"] = images
        else:
            batch["pixel_values"] = torch.cat([self._resize(image[None]) for image in images])
        if resize_later:
            batch["offsets"] = crop_offsets(images[0].shape[-2:], first)
        if self.random_erase:
            height, width = size or batch["pixel_values"].shape[-2:]
            batch["erase"] = erase_boxes(numbers[:, -2:], self.random_erase, (height, width))
        return batch

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes float32 `pixel_values` of what `start` returned, on its device.

        Everything else in the batch, such as labels, stays; a finished batch stays as it is.
        """
        images = batch["pixel_values"]
        if "offsets" in batch:
            images = self._resize(crop_and_flip(images, batch["offsets"]))
        if images.dtype == torch.uint8:
            images = self._normalize(images)
        if "erase" in batch:
            images = erase(images, batch["erase"])
        others = {name: values for name, values in batch.items() if name not in ("offsets", "erase")}
        return others | {"pixel_values": images}

    def _size_by_steps(self, images: Images, resized: bool) -> tuple[int, int] | None:
        """Returns height and width of the result if `_resize` and `_normalize` give what the processor gives.

        The processor is tried out on noise, of the images' size or, if they have several, of some sizes.
        """
        if isinstance(images, Tensor):
            return self._try(images.shape[-2], images.shape[-1], resized)
        sizes = {self._try(height, width, resized) for height, width in _TRIED}
        return sizes.pop() if len(sizes) == 1 else None

    def _try(self, height: int, width: int, resized: bool) -> tuple[int, int] | None:
        key = (height, width, resized)
        if key not in self._sizes:
            noise = _noise(height, width)
            try:
                by_steps = self._normalize(noise if resized else self._resize(noise))
                same = torch.equal(by_steps, self._process(noise, resized))
            except (TypeError, ValueError):  # the processor resizes in another way
                same = False
            self._sizes[key] = (by_steps.shape[-2], by_steps.shape[-1]) if same else None
        return self._sizes[key]

    @property
    def _lanczos(self) -> bool:
        """Whether the processor resizes by a filter that torchvision has on the CPU alone."""
        filters = (PILImageResampling.LANCZOS, InterpolationMode.LANCZOS)
        return getattr(self.processor, "resample", None) in filters

    def _resize(self, images: Tensor) -> Tensor:
        """Resizes and crops [B, 3, H, W] by the processor's own settings."""
        processor = self.processor
        if not isinstance(processor, TorchvisionBackend):
            return images
        if processor.do_resize:
            images = processor.resize(images, size=processor.size, resample=processor.resample)
        if processor.do_center_crop:
            images = processor.center_crop(images, processor.crop_size)
        return images

    def _process(self, images: Images, resized: bool = False) -> Tensor:
        options: dict[str, Any] = {"return_tensors": "pt"}
        if resized and hasattr(self.processor, "data_config"):  # timm's processor takes no options
            return self._normalize(torch.stack(list(images)))
        if resized:
            options["do_resize"] = False
        if isinstance(self.processor, TorchvisionBackend):
            batch = self.processor(list(images), input_data_format="channels_first", **options)
        else:
            # These, timm's among them, resize with PIL: only a PIL image gives the pipeline's result.
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


def _crop_and_flip_each(images: Images, numbers: np.ndarray) -> Images:
    if isinstance(images, Tensor):
        return crop_and_flip(images, crop_offsets(images.shape[-2:], numbers))
    return [
        _crop_and_flip_each(image[None], row[None])[0] for image, row in zip(images, numbers, strict=True)
    ]


def _noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
