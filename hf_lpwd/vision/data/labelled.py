"""One whole split of a labelled dataset, with the classes of a model that is already trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.image_sizes import undecoded
from hf_lpwd.vision.data.labels import labels_by_name
from hf_lpwd.vision.data.layout import role_of
from hf_lpwd.vision.data.sources import load_source
from hf_lpwd.vision.data.splits import with_columns

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN = 10


@dataclass(frozen=True)
class LabelledImages:
    """One split of a dataset, undecoded, with labels in the numbering of a model's classes.

    Attributes:
        name: The dataset's name or path.
        split: Name of the split.
        splits: Names of all splits of the dataset.
        files: Their image column, undecoded.
        labels: int64 [N]; class of each image.
        numbers: int64 [N]; its row in the split.
        unlabelled: How many more images the split has, which have no label.
    """

    name: str
    split: str
    splits: list[str]
    files: Dataset
    labels: np.ndarray
    numbers: np.ndarray
    unlabelled: int

    @property
    def where(self) -> str:
        """The dataset, and the split if there are several."""
        return _where(self.name, self.split, self.splits)

    def cells(self) -> Iterator[dict[str, Any] | None]:
        """Yields each image: ``{"bytes": ..., "path": ...}``."""
        for row in self.files:
            yield next(iter(row.values()))

    def describe(self, index: int) -> str:
        """Returns where an image stands: its row in the split, and its path if it has one."""
        cell = next(iter(self.files[index].values()))
        path = f" ({cell['path']})" if cell and cell["path"] else ""
        return f"{self.split} row {self.numbers[index]}{path}"


def load_labelled(
    args: DataTrainingArguments,
    class_names: Sequence[str],
    split: str | None = None,
    *,
    skip_unlabelled: bool = False,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> LabelledImages:
    """Loads one split of a dataset, all of it; nothing is cut off.

    Args:
        args: Which dataset and which columns.
        class_names: The model's classes, which those of the dataset must be among, by name.
        split: Name of the split. Default: the test split, else the validation split, else the only one.
        skip_unlabelled: Leave out images whose label is missing or -1, instead of refusing them.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        token: Hub token for private datasets.

    Raises:
        BadInputError: There is no such dataset, split or column, several splits and none of these names, no
            row has a label, or a label is none of the model's classes.
    """
    source = load_source(args, cache_dir=cache_dir, token=token, class_names=class_names)
    name, loaded = source.name, source.splits
    split = _choose(list(loaded), split, name)
    parts, (image_column, label_column) = with_columns({split: loaded[split]}, args)
    given = labels_by_name(parts, {split: split}, label_column)[split]
    where = _where(name, split, list(loaded))
    labels = _by_name(given, class_names, where)
    kept = np.flatnonzero(labels >= 0)
    unlabelled = len(labels) - len(kept)
    if unlabelled and not skip_unlabelled:
        raise BadInputError(
            f"{where}: {unlabelled} of {len(labels)} images have no label: --skip_unlabelled leaves them out"
        )
    files = undecoded(parts[split].select(kept), image_column)
    return LabelledImages(name, split, list(loaded), files, labels[kept], kept, unlabelled)


def _where(name: str, split: str, splits: Sequence[str]) -> str:
    return f"{name} ({split})" if len(splits) > 1 else name


def _choose(splits: list[str], split: str | None, name: str) -> str:
    if split is not None:
        if split in splits:
            return split
        raise BadInputError(f"{name}: {unknown('split', split, splits)} (it has {', '.join(splits)})")
    if len(splits) == 1:
        return splits[0]
    for role in ("test", "validation"):
        for candidate in splits:
            if role_of(candidate) == role:
                return candidate
    raise BadInputError(f"{name} has several splits ({', '.join(splits)}): name one with --split")


def _by_name(given: Sequence[str | None], class_names: Sequence[str], where: str) -> np.ndarray:
    index = {name: label for label, name in enumerate(class_names)}
    counts = Counter(given)
    unlabelled = counts.pop(None, 0)
    if unlabelled == len(given):
        raise BadInputError(f"{where} has no labels, so that nothing can be measured: see hf-lpwd predict")
    strange = {name: count for name, count in counts.items() if name not in index}
    if strange:
        listed = ", ".join(f"{name!r} ({count} images)" for name, count in list(strange.items())[:_SHOWN])
        known = ", ".join(map(repr, class_names[:_SHOWN]))
        raise BadInputError(
            f"{where}: {len(strange)} classes are none of the model's: {listed}; the model has {known}"
            + (f" and {len(class_names) - _SHOWN} more" if len(class_names) > _SHOWN else "")
        )
    return np.array([-1 if name is None else index[name] for name in given], dtype=np.int64)
