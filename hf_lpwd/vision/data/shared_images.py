"""Whether images for validation or test are among the training images: files that are equal byte for byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from hf_lpwd.vision.data.image_sizes import undecoded

# About ten seconds of reading.
_MOST_BYTES = 2e9
_CHUNK = 1000


def count_shared_images(parts: dict[str, Dataset], column: str) -> dict[str, int] | None:
    """Counts how many images of each other split are among those of ``"train"``.

    Args:
        parts: The splits by role; their rows are compared by the bytes of the image files.
        column: Column of the images.

    Returns:
        The counts by role; None if the files are remote, or too large to be read for this.
    """
    files = {role: undecoded(part, column) for role, part in parts.items()}
    sizes = {role: [_size(cell) for cell in _cells(part, column)] for role, part in files.items()}
    if sum(sum(each) for each in sizes.values()) > _MOST_BYTES or any(-1 in each for each in sizes.values()):
        return None
    others = {role for role in files if role != "train"}
    # Only files of a size that occurs on both sides are read.
    of_others = {size for role in others for size in sizes[role]}
    trained = set(_digests(files["train"], column, sizes["train"], of_others))
    of_train = set(sizes["train"])
    return {
        role: sum(digest in trained for digest in _digests(files[role], column, sizes[role], of_train))
        for role in others
    }


def _cells(part: Dataset, column: str) -> Iterator[dict[str, Any] | None]:
    for start in range(0, len(part), _CHUNK):
        yield from part[start : start + _CHUNK][column]


def _size(cell: dict[str, Any] | None) -> int:
    """Returns the bytes of an image file, 0 if there is none, -1 if it is not on this machine."""
    if cell is None or cell["bytes"] is not None:
        return len(cell["bytes"]) if cell else 0
    if not cell["path"]:
        return 0
    try:
        return os.path.getsize(cell["path"])
    except OSError:
        return -1 if "://" in cell["path"] else 0


def _digests(part: Dataset, column: str, sizes: list[int], wanted: set[int]) -> Iterator[bytes]:
    for cell, size in zip(_cells(part, column), sizes, strict=True):
        if size > 0 and size in wanted and cell is not None:
            content = cell["bytes"]
            if content is None:
                with open(cell["path"], "rb") as file:
                    content = file.read()
            yield hashlib.blake2b(content, digest_size=16).digest()
