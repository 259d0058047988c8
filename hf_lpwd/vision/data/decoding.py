"""One image file -> uint8 array [3, H, W], the same image that the pipeline sees."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from hf_lpwd.messages import first_line

try:  # an extra: it makes PIL read the photographs of iPhones
    import pillow_heif  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# PIL claims these, but they hold films, documents or measurements.
_NO_IMAGES = {
    ".mpg",
    ".mpeg",
    ".ps",
    ".eps",
    ".h5",
    ".hdf",
    ".grib",
    ".bufr",
    ".fit",
    ".fits",
    ".wmf",
    ".emf",
}
#: How many times the wanted pixels an image that is decoded at a reduced size keeps along each side.
_SPARE = 2


@dataclass(frozen=True)
class Scale:
    """Which stored values become 255 in grey images of more than 8 bits; one for a whole dataset.

    Attributes:
        integers: 255, 1023, 4095 or 65535, for 8, 10, 12 or 16 bits.
        floats: 1 or 255.
    """

    integers: int = 65535
    floats: int = 1

    @classmethod
    def of(cls, highest: Iterable[int | float]) -> Scale:
        """Returns the scale of images with these highest values: the smallest that holds all of them.

        Example:
            >>> Scale.of([900, 3000])
            Scale(integers=4095, floats=1)
        """
        most = {int: -1.0, float: 0.0}
        for value in highest:
            most[type(value)] = max(most[type(value)], value)
        integers = next((white for white in (255, 1023, 4095) if 0 <= most[int] <= white), cls.integers)
        return cls(integers, 1 if most[float] <= 1 else 255)

    def describe(self) -> str:
        """Returns the scale in words."""
        return f"more than 8 bits (integers to {self.integers} and floats to {self.floats} become 0 to 255)"


@cache
def image_suffixes() -> frozenset[str]:
    """Returns the lower-case suffixes of the image files that PIL can read here."""
    Image.init()
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    return frozenset(known - _NO_IMAGES)


def read_image(
    cell: dict[str, Any] | None,
    box: Callable[[int, int], Sequence[int]] | None = None,
    size: tuple[int, int] | None = None,
    scale: Scale | None = None,
) -> np.ndarray:
    """Decodes one cell of an undecoded `datasets.Image` column as `transformers.image_utils.load_image` does.

    That is: turned by its EXIF orientation, then converted to RGB. Only grey images of more than 8 bits
    differ: PIL clips them to white, here they are scaled to 0..255.

    A large JPEG of which little will be left is decoded at a half, a quarter or an eighth of its size, where
    each side keeps at least twice the pixels that are wanted; resized then, its values differ by about half a
    grey level. `PIL.Image.thumbnail` does the same.

    Args:
        cell: `{"bytes": ..., "path": ...}`; the path is read where there are no bytes.
        box: From height and width of the upright image to top, left, height and width of the part that is
            wanted; default all of it.
        size: Height and width to which that part will be resized.
        scale: Which values of more than 8 bits are white; default: decided from this image alone.

    Returns:
        uint8 array [3, H, W]; in memory a pixel's three values lie side by side, as PIL has them, which is
        also the layout that torchvision resizes fastest.

    Raises:
        ValueError: If it cannot be decoded, with the reason.
    """
    try:
        with Image.open(_open(cell)) as file:
            image: Image.Image = file
            if box is not None:
                height, width = _upright_size(image)
                part = np.array(box(height, width))
                if size is not None:
                    reduction = min(part[2] / size[0], part[3] / size[1]) / _SPARE
                    image.draft(None, (int(image.width / reduction), int(image.height / reduction)))
            image.load()
            # In place, and converted only if need be: each copy that PIL makes takes time.
            ImageOps.exif_transpose(image, in_place=True)
            deep = _is_deep(image)
            if deep and scale is None:
                scale = Scale.of([_highest(image)])
            if box is not None:
                shrunk = np.array([image.height / height, image.width / width])
                top, left = np.rint(part[:2] * shrunk)
                bottom, right = np.rint((part[:2] + part[2:]) * shrunk)
                image = image.crop((left, top, right, bottom))
            if deep:
                grey = _to_8_bit(np.asarray(image), scale or Scale())
                return np.repeat(grey[..., None], 3, axis=2).transpose(2, 0, 1)
            return np.array(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # each of PIL's format plugins fails in its own way on damaged files
        raise ValueError(_reason(error)) from error


def read_images(
    cells: Sequence[dict[str, Any] | None],
    boxes: Sequence[Callable[[int, int], Sequence[int]] | None],
    size: tuple[int, int] | None = None,
    threads: int = 1,
    scale: Scale | None = None,
) -> Iterator[np.ndarray | ValueError]:
    """Yields what `read_image` returns or raises for each cell, in their order.

    Args:
        cells: As for `read_image`.
        boxes: For each cell, as for `read_image`.
        size: As for `read_image`.
        threads: How many decode side by side. Worth while for photographs; images of 32 pixels take longer
            to hand over than to decode.
        scale: As for `read_image`.
    """

    def read(
        cell: dict[str, Any] | None, box: Callable[[int, int], Sequence[int]] | None
    ) -> np.ndarray | ValueError:
        try:
            return read_image(cell, box, size, scale)
        except ValueError as error:
            return error

    if threads == 1:
        yield from map(read, cells, boxes)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(read, cells, boxes)


def deep_highest(cell: dict[str, Any] | None) -> int | float | None:
    """Returns the highest value of a grey image of more than 8 bits; None for another or a damaged image."""
    try:
        with Image.open(_open(cell)) as image:
            return _highest(image) if _is_deep(image) else None
    except Exception:  # as in read_image, which says it where the image is used
        return None


def image_size(cell: dict[str, Any] | None) -> tuple[int, int]:
    """Returns height and width from the file's header, before any EXIF rotation.

    Raises:
        ValueError: If there is no readable header.
    """
    try:
        with Image.open(_open(cell)) as image:
            return image.height, image.width
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _open(cell: dict[str, Any] | None) -> io.BytesIO:
    content, path = (None, None) if cell is None else (cell["bytes"], cell["path"])
    if content is None and path and _URL.match(path):
        # As `datasets` reads it, which knows the Hub, its tokens and cloud storage.
        with xopen(path, "rb") as file:
            content = file.read()
    elif content is None and path:
        content = Path(path).read_bytes()
    if not content:
        raise ValueError("there are no bytes")
    return io.BytesIO(content)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _highest(image: Image.Image) -> int | float:
    return np.asarray(image).max().item()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width of the turned image; loads and turns it unless it is a JPEG."""
    if isinstance(image, JpegImageFile):
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image.height, image.width


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    return first_line(error)


def _to_8_bit(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Scales grey values to 0..255."""
    white = scale.floats if np.issubdtype(values.dtype, np.floating) else scale.integers
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"grey values from {values.min()} to {values.max()}, expected 0 to {white}")
    return np.rint(values * (255 / white)).astype(np.uint8)
