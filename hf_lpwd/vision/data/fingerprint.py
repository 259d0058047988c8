"""What tells two datasets apart: a hash of their images and labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

if TYPE_CHECKING:
    from hf_lpwd.vision.data.splits import Splits

_HEAD = 65_536
_CHUNK = 256


def fingerprints(splits: Splits) -> dict[str, str]:
    """Hash of the images and labels of each split, in their order: 16 hexadecimal digits.

    Of an image the encoded file counts: its size and its first 64 KB, so that large ones are not read whole.
    """
    found = {}
    for role in splits.rows:
        dataset = getattr(splits, role)
        dataset = dataset.select_columns([splits.image_column, splits.label_column])
        dataset = dataset.cast_column(splits.image_column, datasets.Image(decode=False))
        digest = hashlib.sha256()
        for start in range(0, len(dataset), _CHUNK):
            rows = dataset[start : start + _CHUNK]
            for image, label in zip(rows[splits.image_column], rows[splits.label_column], strict=True):
                size, head = _head(image)
                digest.update(f"{label} {size} ".encode() + head)
        found[role] = digest.hexdigest()[:16]
    return found


def _head(image: dict[str, Any] | None) -> tuple[int, bytes]:
    if image is None:
        return 0, b""
    if image["bytes"] is not None:
        return len(image["bytes"]), image["bytes"][:_HEAD]
    path = Path(image["path"])
    with path.open("rb") as file:
        return path.stat().st_size, file.read(_HEAD)
