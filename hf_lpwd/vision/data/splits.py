"""Data set -> training, validation and test split, their columns and their classes."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_lpwd.messages import BadInputError, unknown
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.facts import DataFacts, SplitFacts
from hf_lpwd.vision.data.labels import encode_labels, stratified_cut

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DIGITS = "digits"

_ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
# The seed and share of the digits' test split: constants, so that every run has the same test pictures.
_DIGITS_TEST_SEED, _DIGITS_TEST_SHARE = 0, 0.2


@dataclass(frozen=True)
class Splits:
    """The data of one run.

    Attributes:
        name: The data set's name or path, `"digits"` for those of scikit-learn.
        train: Training rows; the label column is a `datasets.ClassLabel`.
        validation: Rows for model selection.
        test: Rows to read once, at the end; None if the data set has no labelled test split.
        class_names: Name of each class, by label.
        image_column: Column of the pictures, a `datasets.Image` feature.
        label_column: Column of the labels.
        sources: For each of `"train"`, `"validation"`, `"test"` present: the split of the data set that its
            rows come from.
        rows: For the same keys: the row numbers in that split, an int64 array.
        source_sizes: Rows of each split as loaded.
        facts: The same for people: what the data is, and what of it is not used.
    """

    name: str
    train: Dataset
    validation: Dataset
    test: Dataset | None
    class_names: list[str]
    image_column: str
    label_column: str
    sources: dict[str, str]
    rows: dict[str, np.ndarray]
    source_sizes: dict[str, int]
    facts: DataFacts


def load_splits(
    args: DataTrainingArguments, *, seed: int, cache_dir: str | None = None, token: str | bool | None = None
) -> Splits:
    """Loads the data set and gives it a training, a validation and, where it has one, a test split.

    Without a validation split one is cut from the training data, stratified by label. A test split without
    labels (-1 or missing, as in many challenges) counts as none. Labels that are strings, integers or
    booleans become classes in sorted order.

    Args:
        args: Which data, which columns, how many rows.
        seed: Seed of the validation cut and of `max_train_samples` and `max_eval_samples`.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        token: Hub token for private data sets.

    Returns:
        The splits, with columns and classes found and checked.

    Raises:
        BadInputError: If there is no such data set or column, fewer than two classes to train on, or a label
            that is missing or outside the classes.
    """
    name, loaded = _load(args, cache_dir, token)
    sources = _assign_roles(loaded, name)
    parts = {role: loaded[source] for role, source in sources.items()}
    image_column = _find_column(parts["train"], args.image_column_name, _IMAGE_COLUMNS, "image")
    label_column = _find_column(parts["train"], args.label_column_name, _LABEL_COLUMNS, "label")
    parts = {role: _as_images(part, image_column) for role, part in parts.items()}
    class_names, parts, labels = encode_labels(parts, sources, label_column)
    _require_two_classes(labels["train"], class_names, name)

    rows = {role: np.arange(len(part)) for role, part in parts.items()}
    if "validation" not in parts:
        total = len(labels["train"])
        size = min(max(1, round(args.train_val_split * total)), total - 1)
        rows["train"], rows["validation"] = stratified_cut(labels["train"], size, seed)
        parts["validation"], sources["validation"] = parts["train"], sources["train"]
        labels["validation"] = labels["train"]
    available = {role: len(index) for role, index in rows.items()}
    for role, limit in (
        ("train", args.max_train_samples),
        ("validation", args.max_eval_samples),
        ("test", args.max_eval_samples),
    ):
        if role in rows and limit is not None and limit < len(rows[role]):
            rows[role] = rows[role][stratified_cut(labels[role][rows[role]], limit, seed)[1]]

    _require_two_classes(labels["train"][rows["train"]], class_names, name)
    chosen = {role: parts[role].select(index) for role, index in rows.items()}
    return Splits(
        name=name,
        train=chosen["train"],
        validation=chosen["validation"],
        test=chosen.get("test"),
        class_names=class_names,
        image_column=image_column,
        label_column=label_column,
        sources={role: sources[role] for role in rows},
        rows=rows,
        source_sizes={source: len(part) for source, part in loaded.items()},
        facts=DataFacts(
            name,
            {role: SplitFacts(len(rows[role]), sources[role], available[role]) for role in rows},
            class_names,
        ),
    )


def load_digits() -> DatasetDict:
    """Returns scikit-learn's 1,797 handwritten digits, 8x8 grey, with a test split that never changes.

    The values 0..16 become 0..255. A fifth, stratified by label with a fixed seed, is the test split.
    """
    import datasets
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size = round(_DIGITS_TEST_SHARE * len(images))
    train, test = stratified_cut(digits.target, size, _DIGITS_TEST_SEED)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": list(images[rows]), "label": digits.target[rows]}, features=features
            )
            for split, rows in (("train", train), ("test", test))
        }
    )


def _load(
    args: DataTrainingArguments, cache_dir: str | None, token: str | bool | None
) -> tuple[str, DatasetDict]:
    """Returns the name to report and the data set as `datasets` loads it."""
    if args.dataset_name is None and args.train_dir is None:
        return DIGITS, load_digits()
    if args.train_dir is not None:
        folders = {"train": args.train_dir, "validation": args.validation_dir}
        data_files = {split: str(_folder(path) / "**") for split, path in folders.items() if path is not None}
        return args.train_dir, _load_dataset(args.train_dir, "imagefolder", cache_dir, data_files=data_files)

    name = args.dataset_name or ""
    path = os.path.expanduser(name)
    builder = _BUILDERS.get(Path(path).suffix.lower())
    if builder is not None:
        files = sorted(glob.glob(path, recursive=True))
        if not files:
            raise BadInputError(f"no such file: {name}")
        _refuse_mixed_splits(name, files)
        return name, _load_dataset(name, builder, cache_dir, data_files=files)
    if name.startswith((".", "~")) or os.path.isabs(name) or path.count(os.sep) > 1:
        _folder(path)
    return name, _load_dataset(name, path, cache_dir, name=args.dataset_config_name, token=token)


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise BadInputError(f"no such folder: {path}")
    return folder


def _refuse_mixed_splits(name: str, files: list[str]) -> None:
    """Raises if a glob would read test or validation files into the training data."""
    words = {role: {word for word in words if word != "eval"} for role, words in _ROLES.items()}
    found = {
        role
        for file in files
        for role, names in words.items()
        if names & set(re.split(r"[^a-z]+", Path(file).stem.lower()))
    }
    if len(found) > 1:
        raise BadInputError(
            f"{name} matches files of several splits ({', '.join(sorted(found))}): name the folder"
        )


def _load_dataset(label: str, path: str, cache_dir: str | None, **kwargs: Any) -> DatasetDict:
    """Calls `datasets.load_dataset`; what fails becomes a `BadInputError` of one line without the token."""
    import datasets

    try:
        return datasets.load_dataset(path, cache_dir=cache_dir, **kwargs)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        lines = str(cause or error).strip().splitlines() or [type(error).__name__]
        message = re.sub(r"\bhf_\w+", "hf_***", lines[0])
        token = kwargs.get("token")
        if isinstance(token, str) and token:
            message = message.replace(token, "***")
        raise BadInputError(f"data set {label!r} cannot be loaded: {message}") from error


def _assign_roles(loaded: DatasetDict, name: str) -> dict[str, str]:
    """Returns which split of the data set is the training, validation and test split."""
    sources = {
        role: next(split for split in names if split in loaded)
        for role, names in _ROLES.items()
        if any(split in loaded for split in names)
    }
    if "train" not in sources:
        if len(loaded) > 1 or sources:
            raise BadInputError(f"{name} has no training split; it has {', '.join(loaded)}")
        sources = {"train": next(iter(loaded))}
    for role, source in sources.items():
        if len(loaded[source]) == 0:
            raise BadInputError(f"{name}: the {role} split ({source}) is empty")
    return sources


def _find_column(dataset: Dataset, given: str | None, usual: tuple[str, ...], what: str) -> str:
    """Returns the named column, or else the usual one, or else the only one of the feature type."""
    columns = dataset.column_names
    has = f"the data set has {', '.join(columns)}"
    if given is not None:
        if given in columns:
            return given
        raise BadInputError(f"{unknown(f'{what} column', given, columns)} ({has})")
    found = [column for column in usual if column in columns]
    feature_type = {"image": "Image", "label": "ClassLabel"}[what]
    found += [name for name, feature in dataset.features.items() if type(feature).__name__ == feature_type]
    if found and (found[0] in usual or len(found) == 1):
        return found[0]
    hint = f"name it with {what}_column_name"
    if what == "label":
        hint += "; a folder of pictures needs two or more class folders"
    raise BadInputError(f"no {what} column found: {has}; {hint}")


def _require_two_classes(labels: np.ndarray, class_names: list[str], name: str) -> None:
    used = np.unique(labels)
    if len(used) < 2:
        raise BadInputError(
            f"{name}: the training data has one class only ({class_names[used[0]]!r}); "
            "a classifier needs at least two"
        )


def _as_images(dataset: Dataset, column: str) -> Dataset:
    """Makes the column a `datasets.Image`, which files without Hugging Face's metadata do not say."""
    import datasets

    if column not in dataset.column_names:
        raise BadInputError(f"split {dataset.split} has no image column {column!r}")
    feature = dataset.features[column]
    encoded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    plain = isinstance(feature, datasets.Value) and re.fullmatch("(large_)?(string|binary)", feature.dtype)
    if not (isinstance(feature, datasets.Image) or encoded or plain):
        raise BadInputError(
            f"column {column!r} holds {feature}, not pictures (bytes or paths of picture files)"
        )
    return dataset.cast_column(column, datasets.Image())
