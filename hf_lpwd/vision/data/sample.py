"""What some images tell of a dataset: sizes, values, how to augment it, whether it fits in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
import numpy as np
import psutil  # type: ignore[import-untyped]

from hf_lpwd.vision.data.decoding import Scale, deep_highest, image_size, keeps_upper_bits, read_image
from hf_lpwd.vision.data.digits import DIGITS
from hf_lpwd.vision.data.facts import ImageFacts

if TYPE_CHECKING:
    from hf_lpwd.vision.data.splits import Splits

_Rows: TypeAlias = datasets.Dataset | Sequence[dict[str, Any]]

_SMALL_SIDE = 64
_SAMPLE = 64
# Of images of more than 8 bits more are read, as their highest value decides about all of them.
_DEEP_SAMPLE = 4096
# Of each version of control groups: folder, limit, use, and the use's part that gives way (file cache).
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("", "memory.max", "memory.current", "inactive_file")


def look_at_images(
    parts: Iterable[datasets.Dataset], column: str, scale: Scale | None = None
) -> ImageFacts | None:
    """Looks at images that are spread over the splits of a dataset, the first of them the training images.

    The scale is decided from the images, unless it is given. None if no image can be read.
    """
    files = [undecoded(part, column) for part in parts]
    scale = scale or find_scale(files, column)
    sizes, lowest, highest, upper_bits = [], 255, 0, 0
    for cell in _spread(files[:1], column, _SAMPLE):
        try:
            image = read_image(cell, scale=scale or Scale())
        except ValueError:
            continue
        sizes.append((image.shape[1], image.shape[2]))
        upper_bits += keeps_upper_bits(cell)
        lowest, highest = min(lowest, int(image.min())), max(highest, int(image.max()))
    if not sizes:
        return None
    return ImageFacts(
        min(sizes, key=np.prod), max(sizes, key=np.prod), scale, lowest, highest, len(sizes), upper_bits
    )


def find_scale(files: Sequence[_Rows], column: str) -> Scale | None:
    """Decides from the highest values which values are white; None if no image has more than 8 bits.

    `files` are splits from `undecoded`, or lists of such rows.
    """
    if all(deep_highest(cell) is None for cell in _spread(files, column, _SAMPLE)):
        return None
    found = (deep_highest(cell) for cell in _spread(files, column, _DEEP_SAMPLE))
    return Scale.of(value for value in found if value is not None)


def default_augmentation(splits: Splits) -> str:
    """Chooses crop for scikit-learn's digits, crop_flip for small images, else random_resized_crop."""
    if splits.name == DIGITS:
        return "crop"
    sizes = _sample_sizes(undecoded(splits.train, splits.image_column), splits.image_column)
    return "crop_flip" if sizes and max(map(max, sizes)) <= _SMALL_SIDE else "random_resized_crop"


def fits_in_memory(files: datasets.Dataset, column: str) -> bool:
    """Whether the decoded images take less than this process's part of half the free memory."""
    sizes = _sample_sizes(files, column)
    if not sizes:
        return True
    estimate = len(files) * 3 * float(np.mean([height * width for height, width in sizes]))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return estimate < free_memory() / 2 / processes


def undecoded(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Returns the column of images alone, as bytes and paths."""
    return dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _spread(parts: Sequence[_Rows], column: str, count: int) -> Iterator[dict[str, Any] | None]:
    """Yields up to `count` cells of each split, spread evenly over it."""
    for files in parts:
        for row in np.unique(np.linspace(0, len(files) - 1, count).astype(int)).tolist():
            yield files[row][column]


def _sample_sizes(files: datasets.Dataset, column: str) -> list[tuple[int, int]]:
    """Returns height and width of some images spread over the dataset, without those that are damaged."""
    sizes = []
    for cell in _spread([files], column, _SAMPLE):
        try:
            sizes.append(image_size(cell))
        except ValueError:
            continue
    return sizes


def free_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that are available: to the machine, or less where a control group sets a limit.

    Containers and batch systems limit memory by control groups, of which psutil knows nothing.
    """
    return min([psutil.virtual_memory().available, *_left_by_groups(root)])


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yields what each group that this process is in has left, the groups around it included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, *files = _V1 if controllers else _V2
        mount = root / "sys/fs/cgroup" / folder
        group = mount / path.lstrip("/")
        # In a container, the group may be mounted where its path says the whole tree is.
        for parent in (group, *group.parents):
            if parent.is_relative_to(mount):
                yield from _left(parent, *files)


def _left(group: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    try:
        most, used = ((group / name).read_text().strip() for name in (limit, usage))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if most != "max":
        yield max(0, int(most) - int(used) + int(statistics.get(cache, 0)))
