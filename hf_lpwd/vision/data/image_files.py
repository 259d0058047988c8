"""The image files of a dataset: what tells two datasets apart, images that splits share, several frames."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from PIL import Image

from hf_lpwd.messages import counted
from hf_lpwd.vision.data.sample import undecoded

if TYPE_CHECKING:
    from hf_lpwd.vision.data.splits import Splits

_CHUNK = 1000
_HEAD = 65_536
# About ten seconds of reading.
_MOST_BYTES = 2e9
_MOST_HEADERS = 100_000
# How files begin that can hold several frames: GIF, TIFF, WebP, PNG, AVIF and HEIF.
_MAY_HAVE_FRAMES = re.compile(rb"GIF8|II[*+]\0|MM\0[*+]|RIFF....WEBP|\x89PNG|....ftyp", re.DOTALL)

_Cell = dict[str, Any] | None


def fingerprints(splits: Splits) -> dict[str, str]:
    """Hash of the images and labels of each split, in their order: 16 hexadecimal digits.

    Of an image the encoded file counts: its size and its first 64 KB, so that large ones are not read whole.
    """
    found = {}
    for role in splits.rows:
        part = getattr(splits, role)
        labels = part.select_columns([splits.label_column])[:][splits.label_column]
        digest = hashlib.sha256()
        for cell, label in zip(_cells(part, splits.image_column), labels, strict=True):
            head = b"" if cell is None else _content(cell, _HEAD)
            digest.update(f"{label} {_size(cell)} ".encode() + head)
        found[role] = digest.hexdigest()[:16]
    return found


def compare_images(
    parts: Mapping[str, Dataset], column: str, labels: Mapping[str, Sequence[str]]
) -> tuple[dict[str, int] | None, str | None]:
    """Compares the image files of splits, whole, byte for byte.

    Args:
        parts: The splits by role.
        column: Column of the images.
        labels: For each split the class names of its images.

    Returns:
        By role, how many images of the other splits are among those of ``"train"``; and a sentence about the
        images that are in more than one class, if there are any. None for both if files are remote, or too
        large to be read for this.
    """
    sizes = {role: [_size(cell) for cell in _cells(part, column)] for role, part in parts.items()}
    if sum(sum(each) for each in sizes.values()) > _MOST_BYTES or any(-1 in each for each in sizes.values()):
        return None, None
    counts = Counter(chain.from_iterable(sizes.values()))
    digests: dict[str, list[bytes]] = {role: [] for role in parts}
    # Digest -> class -> the first of the places where the image has this class.
    places: dict[bytes, dict[str, str]] = defaultdict(dict)
    for role, part in parts.items():
        for row, cell in enumerate(_cells(part, column)):
            size = sizes[role][row]
            if cell is None or size == 0 or counts[size] == 1:
                continue
            digest = hashlib.blake2b(_content(cell), digest_size=16).digest()
            digests[role].append(digest)
            place, label = cell["path"] or f"image {row} of {role}", labels[role][row]
            places[digest][label] = min(place, places[digest].get(label, place))
    trained = set(digests.get("train", ()))
    shared = {
        role: sum(digest in trained for digest in found) for role, found in digests.items() if role != "train"
    }
    several = [by_class for by_class in places.values() if len(by_class) > 1]
    if not several:
        return shared, None
    first = min(sorted((place, label) for label, place in by_class.items()) for by_class in several)[:2]
    return shared, (
        f"{counted(len(several), 'image is', 'images are')} in more than one class, byte for byte, the first "
        + " and ".join(f"{place} ({label})" for place, label in first)
    )


def several_frames(parts: Collection[Dataset], column: str) -> str | None:
    """Returns `frames_note` of the images of some splits; of more than 100,000, of a part of them."""
    step = max(1, math.ceil(sum(map(len, parts)) / _MOST_HEADERS))
    looked_at = (part.select(range(0, len(part), step)) for part in parts)
    return frames_note(chain.from_iterable(_cells(part, column) for part in looked_at))


def frames_note(cells: Iterable[_Cell]) -> str | None:
    """Says how many images are animated or hold several pages, by their headers; None if none does."""
    found = [_has_several_frames(cell) for cell in cells]
    if not any(found):
        return None
    have = f"{counted(len(found), 'image')} looked at {'has' if sum(found) == 1 else 'have'}"
    return f"{sum(found)} of {have} several frames, of which the first is used"


def _has_several_frames(cell: _Cell) -> bool:
    try:
        if cell is None or not _MAY_HAVE_FRAMES.match(_content(cell, 12)):
            return False
        with Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged or remote file, which the decoder names where it is used
        return False


def _cells(part: Dataset, column: str) -> Iterator[_Cell]:
    files = undecoded(part, column)
    for start in range(0, len(files), _CHUNK):
        yield from files[start : start + _CHUNK][column]


def _size(cell: _Cell) -> int:
    """Returns the bytes of an image file, 0 if there is none, -1 if it is not on this machine."""
    if cell is None or cell["bytes"] is not None:
        return len(cell["bytes"]) if cell else 0
    try:
        return os.path.getsize(cell["path"] or "")
    except OSError:
        return -1 if "://" in (cell["path"] or "") else 0


def _content(cell: dict[str, Any], most: int | None = None) -> bytes:
    if cell["bytes"] is not None:
        return cell["bytes"][:most]
    with open(cell["path"], "rb") as file:
        return file.read(most)
