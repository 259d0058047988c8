"""The image files of a dataset: what tells two datasets apart, images that splits share, several frames."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike
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


@dataclass(frozen=True)
class Comparison:
    """What the image files of some splits tell when they are compared, whole, byte for byte.

    Attributes:
        fingerprints: For each split a hash of its images and classes, in their order: 16 hexadecimal digits.
        digests: For each split a hash of each file, uint64 [N], 0 where there is none; None if files are
            remote, or too large to be read for this.
        shared: For each split but `"train"`: how many of its images are among those of `"train"`; None as
            `digests`.
        notes: What is found besides, and why nothing is compared, a sentence each.
    """

    fingerprints: dict[str, str]
    digests: dict[str, np.ndarray] | None
    shared: dict[str, int] | None
    notes: list[str]


def compare_images(
    parts: Mapping[str, Dataset], column: str, labels: Mapping[str, Sequence[str]]
) -> Comparison:
    """Compares the image files of splits.

    Args:
        parts: The splits by role.
        column: Column of the images.
        labels: For each split the class names of its images.
    """
    sizes = {role: [_size(cell) for cell in _cells(part, column)] for role, part in parts.items()}
    why_not = _why_not_compared(list(chain.from_iterable(sizes.values())))
    digests = {role: np.zeros(len(part), dtype=np.uint64) for role, part in parts.items()}
    fingerprints = {}
    for role, part in parts.items():
        of_split = hashlib.sha256()
        for row, (cell, label) in enumerate(zip(_cells(part, column), labels[role], strict=True)):
            size = sizes[role][row]
            if cell is not None and size > 0 and why_not is None:
                # What cannot be read is named by the decoder.
                with suppress(OSError):
                    hashed = hashlib.blake2b(_content(cell), digest_size=8)
                    digests[role][row] = int.from_bytes(hashed.digest())
            image = cell["path"] if cell and size < 0 else f"{size} {digests[role][row]}"
            of_split.update(f"{image} {label}\n".encode(errors="surrogatepass"))
        fingerprints[role] = of_split.hexdigest()[:16]
    if why_not is not None:
        return Comparison(fingerprints, None, None, [f"The image files are not compared: {why_not}"])
    shared = {role: num_shared(found, digests.get("train", ())) for role, found in digests.items()}
    shared.pop("train", None)
    notes = []
    if count := num_shared(digests.get("test", ()), digests.get("validation", ())):
        also = "is also a validation image" if count == 1 else "are also validation images"
        notes.append(f"{count} of {counted(len(digests['test']), 'test image')} {also}")
    notes += _in_several_classes(parts, column, labels, digests)
    return Comparison(fingerprints, digests, shared, notes)


def _in_several_classes(
    parts: Mapping[str, Dataset],
    column: str,
    labels: Mapping[str, Sequence[str]],
    digests: Mapping[str, np.ndarray],
) -> list[str]:
    values, counts = np.unique(np.concatenate(list(digests.values())), return_counts=True)
    repeated = values[(counts > 1) & (values != 0)]
    # Digest -> class -> the first of the places where the image has this class.
    places: dict[int, dict[str, str]] = defaultdict(dict)
    for role, part in parts.items():
        files = undecoded(part, column)
        for row in np.flatnonzero(np.isin(digests[role], repeated)).tolist():
            by_class, label = places[int(digests[role][row])], labels[role][row]
            place = files[row][column]["path"] or f"image {row} of {role}"
            by_class[label] = min(place, by_class.get(label, place))
    several = [by_class for by_class in places.values() if len(by_class) > 1]
    if not several:
        return []
    first = min(sorted((place, label) for label, place in by_class.items()) for by_class in several)[:2]
    return [
        f"{counted(len(several), 'image is', 'images are')} in more than one class, byte for byte, the first "
        + " and ".join(f"{place} ({label})" for place, label in first)
    ]


def num_shared(digests: ArrayLike, others: ArrayLike) -> int:
    """Returns how many of the images of some `Comparison.digests` are among others."""
    digests = np.asarray(digests)
    return int(np.count_nonzero(np.isin(digests, others) & (digests != 0)))


def _why_not_compared(sizes: Sequence[int]) -> str | None:
    if remote := sizes.count(-1):
        return f"{remote} of {len(sizes)} are not on this machine"
    if sum(sizes) > _MOST_BYTES:
        return f"they have {sum(sizes) / 1e9:.3g} GB, more than {_MOST_BYTES / 1e9:g}"
    return None


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
