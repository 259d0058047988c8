"""One picture file -> uint8 array [3, H, W], the same picture that the pipeline sees."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def read_image(cell: dict[str, Any] | None) -> np.ndarray:
    """Decodes one cell of an undecoded `datasets.Image` column as `transformers.image_utils.load_image` does.

    That is: turned by its EXIF orientation, then converted to RGB. Only grey pictures of more than 8 bits
    differ: PIL clips them to white, here 0..65535 become 0..255.

    Args:
        cell: `{"bytes": ..., "path": ...}`; the path is read where there are no bytes.

    Returns:
        uint8 array [3, H, W]; in memory a pixel's three values lie side by side, as PIL has them, which is
        also the layout that torchvision resizes fastest.

    Raises:
        ValueError: If it cannot be decoded, with the reason.
    """
    try:
        with Image.open(_open(cell)) as image:
            image.load()
            # In place, and converted only if need be: each copy that PIL makes takes time.
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F" or image.mode.startswith("I"):
                return np.repeat(_to_8_bit(np.asarray(image))[..., None], 3, axis=2).transpose(2, 0, 1)
            return np.array(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # each of PIL's format plugins fails in its own way on damaged files
        raise ValueError(_reason(error)) from error


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
