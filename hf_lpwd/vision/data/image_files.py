"""The image files of a dataset, compared: what tells two datasets apart, and images that two splits share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lpwd.vision.data.sample import undecoded

if TYPE_CHECKING:
    from hf_lpwd.vision.data.splits import Splits

_CHUNK = 1000
_HEAD = 65_536
# About ten seconds of reading.
_MOST_BYTES = 2e9

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


def count_shared_images(parts: dict[str, Dataset], column: str) -> dict[str, int] | None:
    """Counts by role how many images of the other splits are among those of ``"train"``, byte for byte.

    None if the files are remote, or too large to be read for this.
    """
    sizes = {role: [_size(cell) for cell in _cells(part, column)] for role, part in parts.items()}
    if sum(sum(each) for each in sizes.values()) > _MOST_BYTES or any(-1 in each for each in sizes.values()):
        return None
    others = {role for role in parts if role != "train"}

    def digests(role: str, wanted: set[int]) -> Iterator[bytes]:
        for cell, size in zip(_cells(parts[role], column), sizes[role], strict=True):
            if size > 0 and size in wanted and cell is not None:
                yield hashlib.blake2b(_content(cell), digest_size=16).digest()

    # Only files of a size that occurs on both sides are read.
    trained = set(digests("train", {size for role in others for size in sizes[role]}))
    of_train = set(sizes["train"])
    return {role: sum(digest in trained for digest in digests(role, of_train)) for role in others}


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
