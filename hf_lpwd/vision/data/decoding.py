"""One picture file -> uint8 array [3, H, W], the same picture that the pipeline sees."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

#: How many times the wanted pixels a picture that is decoded at a reduced size keeps along each side.
_SPARE = 2


def read_image(
    cell: dict[str, Any] | None,
    box: Callable[[int, int], Sequence[int]] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decodes one cell of an undecoded `datasets.Image` column as `transformers.image_utils.load_image` does.

    That is: turned by its EXIF orientation, then converted to RGB. Only grey pictures of more than 8 bits
    differ: PIL clips them to white, here 0..65535 become 0..255.

    A large JPEG of which little will be left is decoded at a half, a quarter or an eighth of its size, where
    each side keeps at least twice the pixels that are wanted; resized then, its values differ by about half a
    grey level. `PIL.Image.thumbnail` does the same.

    Args:
        cell: `{"bytes": ..., "path": ...}`; the path is read where there are no bytes.
        box: From height and width of the upright picture to top, left, height and width of the part that is
            wanted; default all of it.
        size: Height and width to which that part will be resized.

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
            if box is not None:
                scale = np.array([image.height / height, image.width / width])
                top, left = np.rint(part[:2] * scale)
                bottom, right = np.rint((part[:2] + part[2:]) * scale)
                image = image.crop((left, top, right, bottom))
            if image.mode == "F" or image.mode.startswith("I"):
                return np.repeat(_to_8_bit(np.asarray(image))[..., None], 3, axis=2).transpose(2, 0, 1)
            return np.array(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # each of PIL's format plugins fails in its own way on damaged files
        raise ValueError(_reason(error)) from error


def read_images(
    cells: Sequence[dict[str, Any] | None],
    boxes: Sequence[Callable[[int, int], Sequence[int]] | None],
    size: tuple[int, int] | None = None,
    threads: int = 1,
) -> Iterator[np.ndarray | ValueError]:
    """Yields what `read_image` returns or raises for each cell, in their order.

    Args:
        cells: As for `read_image`.
        boxes: For each cell, as for `read_image`.
        size: As for `read_image`.
        threads: How many decode side by side. Worth while for photographs; pictures of 32 pixels take longer
            to hand over than to decode.
    """

    def read(
        cell: dict[str, Any] | None, box: Callable[[int, int], Sequence[int]] | None
    ) -> np.ndarray | ValueError:
        try:
            return read_image(cell, box, size)
        except ValueError as error:
            return error

    if threads == 1:
        yield from map(read, cells, boxes)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(read, cells, boxes)


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
    if content is None and path:
        content = Path(path).read_bytes()
    if not content:
        raise ValueError("there are no bytes")
    return io.BytesIO(content)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width of the turned picture; loads and turns it unless it is a JPEG."""
    if isinstance(image, JpegImageFile):
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image.height, image.width


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    return next(iter(str(error).splitlines()), type(error).__name__)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scales grey values to 0..255.

    Integers count as 0..65535; floats as 0..1, or as 0..255 where one exceeds 1.
    """
    if np.issubdtype(values.dtype, np.floating):
        limit, scale = (1, 255.0) if values.max() <= 1 else (255, 1.0)
    else:
        limit, scale = 65535, 1 / 257
    if not (values.min() >= 0 and values.max() <= limit):
        raise ValueError(f"grey values from {values.min()} to {values.max()}, expected 0 to {limit}")
    return np.rint(values * scale).astype(np.uint8)
