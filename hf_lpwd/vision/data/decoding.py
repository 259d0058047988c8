"""One image file -> uint8 array [3, H, W], the same image that the pipeline sees."""

from __future__ import annotations

import io
import re
import sys
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

#: Suffixes of the photographs of iPhones, and what their files begin with after four bytes.
HEIF = (".heic", ".heif", ".hif")
_HEIF_BRANDS = re.compile(rb"ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)")
# What PIL calls colours of two bytes each, in either order or that of this machine.
_TWO_BYTES = re.compile("RGB[AX]?;16[BLN]")
NEEDS_HEIF = "which needs `pip install pillow-heif`"
#: How an address begins that is no path.
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# PIL claims these, but they hold films, documents or measurements.
_NO_IMAGES = {
    *(".mpg", ".mpeg", ".ps", ".eps", ".h5", ".hdf", ".grib", ".bufr", ".fit", ".fits", ".wmf", ".emf"),
}
#: How many times the wanted pixels an image that is decoded at a reduced size keeps along each side.
_SPARE = 2


@dataclass(frozen=True)
class Scale:
    """Which stored values become 255 in images of more than 8 bits; one for a whole dataset.

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

    That is: turned by its EXIF orientation, then converted to RGB. Only images of more than 8 bits differ:
    PIL clips grey ones to white and keeps the upper 8 bits of colours, here they are scaled to 0..255.

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
        content = _content(cell)
        with _open(content) as image:
            values = _deep_values(image, content)
            if values is not None:
                scale = scale or Scale.of([values.max().item()])
                if box is not None:
                    top, left, height, width = box(*values.shape[:2])
                    values = values[top : top + height, left : left + width]
                values = _to_8_bit(values, scale)
                return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3))).transpose(
                    2, 0, 1
                )
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
                shrunk = np.array([image.height / height, image.width / width])
                top, left = np.rint(part[:2] * shrunk)
                bottom, right = np.rint((part[:2] + part[2:]) * shrunk)
                image = image.crop((left, top, right, bottom))
            return np.array(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # each of PIL's format plugins fails in its own way on damaged files
        raise ValueError(first_line(error)) from error


def read_images(
    cells: Sequence[dict[str, Any] | None],
    boxes: Sequence[Callable[[int, int], Sequence[int]] | None],
    size: tuple[int, int] | None = None,
    threads: int = 1,
    scale: Scale | None = None,
) -> Iterator[np.ndarray | ValueError]:
    """Yields what `read_image` returns or raises for each cell and its box, in their order.

    `threads` pay for photographs; images of 32 pixels take longer to hand over than to decode.
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
    """Returns the highest value of an image of more than 8 bits; None for another or a damaged image."""
    try:
        content = _content(cell)
        with _open(content) as image:
            values = _deep_values(image, content)
            return None if values is None else values.max().item()
    except Exception:  # as in read_image, which says it where the image is used
        return None


def keeps_upper_bits(cell: dict[str, Any] | None) -> bool:
    """Whether a readable image has more than 8 bits a channel of which only the upper 8 are read."""
    with _open(_content(cell)) as image:
        raw = _raw_mode(image)
        more = (";16" in raw and not _is_grey(image)) or image.info.get("bit_depth", 8) > 8
        return more and not _TWO_BYTES.fullmatch(raw)


def image_size(cell: dict[str, Any] | None) -> tuple[int, int]:
    """Returns height and width from the file's header, before any EXIF rotation.

    Raises:
        ValueError: If there is no readable header.
    """
    try:
        with _open(_content(cell)) as image:
            return image.height, image.width
    except Exception as error:
        raise ValueError(first_line(error)) from error


def _content(cell: dict[str, Any] | None) -> bytes:
    content, path = (None, None) if cell is None else (cell["bytes"], cell["path"])
    if content is None and path and URL.match(path):
        # As `datasets` reads it, which knows the Hub, its tokens and cloud storage.
        try:
            with xopen(path, "rb") as file:
                content = file.read()
        except FileNotFoundError as error:  # it only repeats the URL
            cause = error.__cause__ or error
            answer = [str(getattr(cause, name)) for name in ("status", "message") if hasattr(cause, name)]
            why = " ".join(answer) or first_line(cause)
            raise ValueError(f"its URL cannot be read: {why}") from error
    elif content is None and path:
        content = Path(path).read_bytes()
    if not content:
        raise ValueError("there are no bytes")
    return content


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        is_heif = _HEIF_BRANDS.match(content, 4)
        raise ValueError(
            f"a HEIC image, {NEEDS_HEIF}" if is_heif else "not an image in a known format"
        ) from None


def _is_grey(image: Image.Image) -> bool:
    """Whether it has one channel of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _raw_mode(image: Image.Image) -> str:
    """PIL's name of what the file of an image holds that is not loaded yet, such as RGB;16B."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _deep_values(image: Image.Image, content: bytes) -> np.ndarray | None:
    """Returns the values of an upright image of more than 8 bits, [H, W, 1 or 3]; None for others."""
    if _is_grey(image):
        return _upright(image)[..., None]
    if not _TWO_BYTES.fullmatch(_raw_mode(image)):
        return None
    with _open(content) as other:
        # Told that the file has the other order of bytes, PIL keeps the lower one of each two.
        other.tile = [(*tile[:3], _swapped(tile[3])) for tile in other.tile]  # type: ignore[attr-defined]
        high, low = (_upright(each, "RGB").astype(np.uint16) for each in (image, other))
    return high * 256 + low


def _swapped(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return (_swapped(arguments[0]), *arguments[1:])
    name, order = arguments[:-1], arguments[-1]
    return name + ("B" if order == "L" or (order == "N" and sys.byteorder == "little") else "L")


def _upright(image: Image.Image, mode: str | None = None) -> np.ndarray:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image if mode is None else image.convert(mode))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width of the turned image; loads and turns it unless it is a JPEG."""
    if isinstance(image, JpegImageFile):
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image.height, image.width


def _to_8_bit(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Scales values to 0..255."""
    white = scale.floats if np.issubdtype(values.dtype, np.floating) else scale.integers
    kind = "grey" if values.shape[2] == 1 else "colour"
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"{kind} values from {values.min()} to {values.max()}, expected 0 to {white}")
    return np.rint(values * (255 / white)).astype(np.uint8)
