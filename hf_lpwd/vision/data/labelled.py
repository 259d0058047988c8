"""One split of a labelled dataset, uncut, with the classes of a model that is already trained."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_lpwd.checkpoints.run_record import read_record
from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError, counted, unknown
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.decoding import Scale
from hf_lpwd.vision.data.digits import DIGITS
from hf_lpwd.vision.data.facts import DataFacts, SplitFacts, list_names
from hf_lpwd.vision.data.image_files import compare_images, num_shared, several_frames
from hf_lpwd.vision.data.labels import labels_by_name, rename_hint, stratified_subset
from hf_lpwd.vision.data.sample import look_at_images, undecoded
from hf_lpwd.vision.data.sources import load_source
from hf_lpwd.vision.data.split_names import role_of
from hf_lpwd.vision.data.splits import Splits, with_columns

#: In the folder of a run: the path of its data, and hashes of the images it was trained on.
TRAINING_IMAGES = "training_images.json"
_SHOWN = 10


@dataclass(frozen=True)
class LabelledImages:
    """One split of a dataset, with labels in the numbering of a model's classes.

    Attributes:
        split: Name of the split.
        splits: Names of all splits of the dataset.
        images: The images that have a label, as `datasets.Image`, and `label`: their class, an integer.
        image_column: Column of the images.
        rows: int64 [N]; row of each image in the split.
        unlabelled: How many more images the split has, which have no label.
        digests: Hash of each image, see `Comparison`.
        facts: What the data is, and what of it is not used.
    """

    split: str
    splits: list[str]
    images: Dataset
    image_column: str
    rows: np.ndarray
    unlabelled: int
    digests: np.ndarray | None
    facts: DataFacts

    @property
    def where(self) -> str:
        """The dataset, and the split if there are several."""
        return _where(self.facts.name, self.split, self.splits)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]; class of each image."""
        return np.array(self.images["label"], dtype=np.int64)

    def cells(self) -> Iterator[dict[str, Any] | None]:
        """Yields each image, undecoded: ``{"bytes": ..., "path": ...}``."""
        for row in undecoded(self.images, self.image_column):
            yield row[self.image_column]

    def describe(self, index: int) -> str:
        """Returns where an image is: its row in the split, and its path if it has one."""
        cell = undecoded(self.images, self.image_column)[index][self.image_column]
        path = f" ({cell['path']})" if cell and cell["path"] else ""
        return f"{self.split} row {self.rows[index]}{path}"


def load_labelled(
    args: DataTrainingArguments,
    class_names: Sequence[str],
    split: str | None = None,
    *,
    roles: Sequence[str] = ("test", "validation"),
    scale: Scale | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> LabelledImages:
    """Loads one split of a dataset; nothing is cut off from it.

    Args:
        args: Which dataset and which columns; at most how many images.
        class_names: The model's classes, which those of the dataset must be among, by name.
        split: Name of the split. Default: the only one, else the first of these roles that there is.
        roles: ``"train"``, ``"validation"`` or ``"test"``.
        scale: Which stored values of more than 8 bits are white, as in the model's training; default: decided
            from these images.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        token: Hub token for private datasets.

    Raises:
        BadInputError: There is no such dataset, split or column, no image has a label or some have none, or a
            label is none of the model's classes.
    """
    source = load_source(args, cache_dir=cache_dir, token=token, class_names=class_names)
    name, splits = source.name, list(source.splits)
    split = _choose(splits, split, roles, name)
    parts, (image_column, label_column) = with_columns({split: source.splits[split]}, args, source.notes)
    where = _where(name, split, splits)
    labels = _by_name(labels_by_name(parts, {split: split}, label_column)[split], class_names, where)
    rows = np.flatnonzero(labels >= 0)
    unlabelled = len(labels) - len(rows)
    if unlabelled and not args.skip_unlabelled:
        raise BadInputError(
            f"{where}: {unlabelled} of {len(labels)} images have no label: --skip_unlabelled leaves them out"
        )
    available = len(rows)
    if args.max_eval_samples is not None and args.max_eval_samples < available:
        rows = rows[stratified_subset(labels[rows], args.max_eval_samples, seed=0)]
    images = parts[split].select(rows).select_columns([image_column])
    texts = [class_names[label] for label in labels[rows]]
    comparison = compare_images({split: images}, image_column, {split: texts})
    source.notes += filter(None, (*comparison.notes, several_frames([images], image_column)))
    left_out = dict(source.left_out) | ({"images without a label": unlabelled} if unlabelled else {})
    facts = DataFacts(
        name,
        {split: SplitFacts(len(rows), split if len(splits) > 1 else "the only split", available)},
        list(class_names),
        images=look_at_images([images], image_column, scale),
        left_out=left_out,
        notes=source.notes,
    )
    images = images.add_column("label", labels[rows])
    digests = None if comparison.digests is None else comparison.digests[split]
    return LabelledImages(split, splits, images, image_column, rows, unlabelled, digests, facts)


def write_training_images(folder: str | os.PathLike[str], splits: Splits) -> None:
    """Writes into the folder of a run which images it is trained on, for `with_training_images`."""
    digests = splits.comparison.digests
    images = None if digests is None else [f"{digest:016x}" for digest in digests["train"].tolist()]
    recorded = {"data": os.path.abspath(os.path.expanduser(splits.name)), "images": images}
    write_bytes(Path(folder, TRAINING_IMAGES), json.dumps(recorded, indent=0).encode())


def with_training_images(
    data: LabelledImages, run: str, config_name: str | None
) -> tuple[LabelledImages, bool]:
    """Compares images with those that a run (its folder or a checkpoint) was trained on.

    Args:
        data: The images.
        run: The folder; a model's name on the Hub says nothing.
        config_name: Configuration of their dataset on the Hub.

    Returns:
        The images with the number of those that are training images among their facts, if it is known; and
        whether they are the images of the training: most of them, or some or perhaps all of its dataset.
    """
    folders = (Path(run), Path(run).parent)
    settings = next(filter(None, map(read_record, folders)), None)
    if settings is None:
        return data, False
    files = [folder / TRAINING_IMAGES for folder in folders if (folder / TRAINING_IMAGES).is_file()]
    recorded = json.loads(files[0].read_text("utf-8")) if files else {"data": None, "images": None}
    same = _is_same_dataset(settings, recorded["data"], data, config_name)
    if recorded["images"] is None or data.digests is None:
        notes = [*data.facts.notes, "Not compared with the images that the run was trained on"]
        return replace(data, facts=replace(data.facts, notes=notes)), same
    trained = np.array([int(digest, 16) for digest in recorded["images"]], dtype=np.uint64)
    shared = num_shared(data.digests, trained)
    facts = replace(data.facts, shared={data.split: shared})
    return replace(data, facts=facts), shared > 0 and (same or 2 * shared >= len(data.rows))


def _is_same_dataset(
    settings: Mapping[str, Any], path: str | None, data: LabelledImages, config_name: str | None
) -> bool:
    """Whether a run's settings and the path of its data say that it was trained on what these images are of.

    Not if they are of a held-out split of it.
    """
    trained, name = settings.get("train_dir") or settings.get("dataset_name") or DIGITS, data.facts.name
    if settings.get("dataset_config_name") != config_name:
        return False
    inside: tuple[str, ...] = ()
    if trained != name:
        ours = Path(name).expanduser().resolve()
        given = path or os.path.expanduser(trained)
        theirs = [Path(path).resolve() for path in glob.glob(given, recursive=True) or [given]]
        around = next((path for path in theirs if ours.is_relative_to(path)), None)
        if around is not None:
            inside = ours.relative_to(around).parts
        elif not any(path.is_relative_to(ours) for path in theirs):
            return False
    words = [word for part in inside for word in (part, *re.split(r"[^a-z]+", Path(part).stem.lower()))]
    return not {role_of(word) for word in (*words, data.split)} & {"validation", "test"}


def _where(name: str, split: str, splits: Sequence[str]) -> str:
    return f"{name} ({split})" if len(splits) > 1 else name


def _choose(splits: list[str], split: str | None, roles: Sequence[str], name: str) -> str:
    if split is not None:
        if split in splits:
            return split
        raise BadInputError(f"{name}: {unknown('split', split, splits)} (it has {', '.join(splits)})")
    if len(splits) == 1:
        return splits[0]
    found = [candidate for role in roles for candidate in splits if role_of(candidate) == role]
    if not found:
        raise BadInputError(
            f"{name} has no {' or '.join(roles)} split, it has {', '.join(splits)}: hf-lpwd evaluate takes "
            "one with --split"
        )
    return found[0]


def _by_name(given: Sequence[str | None], class_names: Sequence[str], where: str) -> np.ndarray:
    index = {name: label for label, name in enumerate(class_names)}
    counts = Counter(name for name in given if name is not None)
    if not counts:
        raise BadInputError(f"{where} has no labels, so that nothing can be measured: see hf-lpwd predict")
    strange = {name: count for name, count in counts.items() if name not in index}
    if strange:
        listed = ", ".join(
            f"{name!r} ({counted(count, 'image')})" for name, count in list(strange.items())[:_SHOWN]
        )
        known = list_names(map(repr, class_names), _SHOWN)
        raise BadInputError(
            f"{where}: {counted(len(strange), 'class is', 'classes are')} none of the model's: {listed}; "
            f"the model has {known}{rename_hint(strange, class_names)}"
        )
    return np.array([-1 if name is None else index[name] for name in given], dtype=np.int64)
