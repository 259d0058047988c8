"""Dataset -> training, validation and test split, their columns and their classes."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value

from hf_lpwd.messages import BadInputError, counted, escaped, unknown
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.facts import DataFacts, SplitFacts, list_names
from hf_lpwd.vision.data.image_files import Comparison, compare_images, several_frames
from hf_lpwd.vision.data.labels import encode_labels, stratified_cut, stratified_subset
from hf_lpwd.vision.data.sample import look_at_images
from hf_lpwd.vision.data.sources import Source, load_source
from hf_lpwd.vision.data.split_names import ROLES, role_of
from hf_lpwd.vision.data.tables import IMAGE_COLUMNS, LABEL_COLUMNS, choice_note

# The same for every seed of a run, so that no run trains on the test images of another one.
_TEST_SEED = 0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The data of one run.

    Attributes:
        name: The dataset's name or path, `"digits"` for those of scikit-learn.
        train: Training rows; the label column is a `datasets.ClassLabel`.
        validation: Rows for model selection.
        test: Rows to read once, at the end; None if the dataset has no labelled test split.
        class_names: Name of each class, by label.
        image_column: Column of the images, a `datasets.Image` feature.
        label_column: Column of the labels.
        sources: For each of `"train"`, `"validation"`, `"test"` present: the split of the dataset that its
            rows come from.
        rows: For the same keys: the row numbers in that split, an int64 array.
        source_sizes: Rows of each split as loaded.
        comparison: What the image files tell when they are compared.
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
    comparison: Comparison
    facts: DataFacts


def load_splits(
    args: DataTrainingArguments,
    *,
    seed: int,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    test_split: float | None = None,
) -> Splits:
    """Loads the dataset and gives it a training, a validation and, where it has one, a test split.

    With `args.test_split` a test split is cut from the training data first. Without a validation split one is
    cut from what remains. A validation or test split without labels counts as none.

    Args:
        args: Which data, which columns, how many rows.
        seed: Of the validation cut and of `max_train_samples` and `max_eval_samples`.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        token: Hub token for private datasets.
        test_split: As `args.test_split` where that is None, but a dataset's own test split is used.

    Raises:
        BadInputError: If there is no such dataset or column, fewer than two classes to train on, or a label
            that is missing or outside the classes.
    """
    source = load_source(args, cache_dir=cache_dir, token=token)
    sources = _assign_roles(source)
    if args.test_split is not None and "test" in sources:
        raise BadInputError(f"{source.name} has a test split ({sources['test']}): leave test_split out")
    if args.train_val_split != DataTrainingArguments.train_val_split and "validation" in sources:
        split = sources["validation"]
        logger.warning(
            "train_val_split %g has no effect: the dataset has the split %s", args.train_val_split, split
        )
    found = {role: source.splits[split] for role, split in sources.items()}
    parts, columns = with_columns(found, args, source.notes)
    class_names, parts, labels = encode_labels(
        parts, sources, columns[1], skip_unlabelled=args.skip_unlabelled
    )
    unlabelled = {sources[role]: int(np.count_nonzero(values < 0)) for role, values in labels.items()}
    left_out = source.left_out + Counter(
        {f"row of {split} without a label": count for split, count in unlabelled.items()}
    )
    rows = {role: np.flatnonzero(labels[role] >= 0) for role in parts}
    _require_two_classes(labels["train"][rows["train"]], class_names, source.name)

    for role, fraction, cut_seed in (
        ("test", test_split if args.test_split is None else args.test_split, _TEST_SEED),
        ("validation", args.train_val_split, seed),
    ):
        if fraction is not None and role not in rows:
            of_train = rows["train"]
            size = min(max(1, round(fraction * len(of_train))), len(of_train) - 1)
            rest, cut = stratified_cut(labels["train"][of_train], size, cut_seed)
            rows["train"], rows[role] = of_train[rest], of_train[cut]
            parts[role], labels[role], sources[role] = parts["train"], labels["train"], sources["train"]
    available = {role: len(index) for role, index in rows.items()}
    for role, limit in (
        ("train", args.max_train_samples),
        ("validation", args.max_eval_samples),
        ("test", args.max_eval_samples),
    ):
        if role in rows and limit is not None and limit < len(rows[role]):
            rows[role] = rows[role][stratified_subset(labels[role][rows[role]], limit, seed)]

    used = {role: labels[role][rows[role]] for role in rows}
    _require_two_classes(used["train"], class_names, source.name)
    chosen = {role: parts[role].select(index) for role, index in rows.items()}
    texts = {role: [class_names[label] for label in used[role]] for role in used}
    comparison = compare_images(chosen, columns[0], texts)
    found_out = [_alike(class_names), *comparison.notes, several_frames(chosen.values(), columns[0])]
    for note in filter(None, found_out):
        source.notes.append(note)
        logger.warning("%s", escaped(note))
    without = np.setdiff1d(range(len(class_names)), used["train"])
    facts = DataFacts(
        source.name,
        {
            role: SplitFacts(len(rows[role]), _origin(role, sources, available), available[role])
            for role in rows
        },
        class_names,
        images=look_at_images(chosen.values(), columns[0]),
        without_training_images=[class_names[label] for label in without],
        first_seen=_first_seen(used, class_names),
        unmeasured=_unmeasured(used, class_names),
        left_out=dict(left_out),
        shared=comparison.shared,
        notes=source.notes,
    )
    _warn(facts)
    return Splits(
        name=source.name,
        train=chosen["train"],
        validation=chosen["validation"],
        test=chosen.get("test"),
        class_names=class_names,
        image_column=columns[0],
        label_column=columns[1],
        sources={role: sources[role] for role in rows},
        rows=rows,
        source_sizes={split: len(part) for split, part in source.splits.items()},
        comparison=comparison,
        facts=facts,
    )


def _assign_roles(source: Source) -> dict[str, str]:
    """Returns which split of the dataset is the training, validation and test split; notes which is none."""
    loaded, name = source.splits, source.name
    sources: dict[str, str] = {}
    for role, names in ROLES.items():
        found = [split for usual in names for split in loaded if split.lower() == usual]
        found = found or [split for split in loaded if role_of(split) == role]
        if len(found) > 1 and found[0].lower() == found[1].lower():
            raise BadInputError(f"{name} has the splits {found[0]} and {found[1]}: leave one of them")
        if found:
            sources[role] = found[0]
    if "train" not in sources:
        if len(loaded) > 1 or sources:
            raise BadInputError(f"{name} has no training split; it has {', '.join(loaded)}")
        sources = {"train": next(iter(loaded))}
    for role, split in sources.items():
        if len(loaded[split]) == 0:
            raise BadInputError(f"{name}: the {role} split ({split}) is empty")
    unused = [split for split in loaded if split not in sources.values()]
    source.left_out += Counter({f"row of the split {split}": len(loaded[split]) for split in unused})
    for split in filter(role_of, unused):
        one, many = f"row of the split {split} is", f"rows of the split {split} are"
        logger.warning("%s: the %s not used", name, counted(len(loaded[split]), one, many))
    return sources


def with_columns(
    parts: dict[str, Dataset], args: DataTrainingArguments, notes: list[str]
) -> tuple[dict[str, Dataset], tuple[str, str]]:
    """Finds the columns of images and labels, and makes the images a `datasets.Image` column in every split.

    Without names in `args`, they are those with usual names, or the only one of the feature's type. Where
    there are several of usual names, `notes` gets a sentence, and a warning says it.
    """
    first = next(iter(parts.values()))
    images = _find_column(first, args.image_column_name, IMAGE_COLUMNS, "image", notes)
    labels = _find_column(first, args.label_column_name, LABEL_COLUMNS, "label", notes)
    return {role: _as_images(part, images) for role, part in parts.items()}, (images, labels)


def _find_column(
    dataset: Dataset, given: str | None, usual: tuple[str, ...], what: str, notes: list[str]
) -> str:
    columns = dataset.column_names
    has = f"the dataset has {list_names(columns)}"
    if given is not None:
        if given in columns:
            return given
        raise BadInputError(f"{unknown(f'{what} column', given, columns)} ({has})")
    found = [column for column in usual if column in columns]
    feature_type = {"image": Image, "label": ClassLabel}[what]
    found += [name for name, feature in dataset.features.items() if isinstance(feature, feature_type)]
    if found and (found[0] in usual or len(found) == 1):
        note = choice_note(what, found[0], usual, columns)
        if note is not None:
            notes.append(note)
            logger.warning("%s", note)
        return found[0]
    raise BadInputError(f"no {what} column found: {has}; name it with {what}_column_name")


def _as_images(dataset: Dataset, column: str) -> Dataset:
    """Makes the column a `datasets.Image`, which files without Hugging Face's metadata do not say."""
    if column not in dataset.column_names:
        raise BadInputError(f"split {dataset.split} has no image column {column!r}")
    feature = dataset.features[column]
    encoded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    plain = isinstance(feature, Value) and re.fullmatch("(large_)?(string|binary)", feature.dtype)
    if not (isinstance(feature, Image) or encoded or plain):
        raise BadInputError(
            f"column {column!r} holds {str(feature)[:100]}, not images (bytes, URLs or paths of image files)"
        )
    return dataset.cast_column(column, Image())


def _require_two_classes(labels: np.ndarray, class_names: list[str], name: str) -> None:
    used = np.unique(labels)
    if len(used) < 2:
        shown = ", ".join(repr(class_names[label]) for label in used)
        raise BadInputError(
            f"{name}: the training data has one class only ({shown}); a classifier needs at least two"
        )


def _alike(class_names: list[str]) -> str | None:
    plain = [unicodedata.normalize("NFKC", "".join(name.split())).casefold() for name in class_names]
    counts = Counter(plain)
    alike = [name for name, text in zip(class_names, plain, strict=True) if counts[text] > 1]
    return (
        f"Classes whose names differ in case, spaces or Unicode form alone: {list_names(alike)}"
        if alike
        else None
    )


def _origin(role: str, sources: Mapping[str, str], available: Mapping[str, int]) -> str:
    """Returns the split that the rows come from, with their part of it if it is divided."""
    together = [other for other in available if sources[other] == sources[role]]
    if len(together) == 1:
        return sources[role]
    return f"{available[role] / sum(available[other] for other in together):.0%} of {sources[role]}"


def _first_seen(used: Mapping[str, np.ndarray], class_names: list[str]) -> dict[str, list[str]]:
    strange = {role: np.setdiff1d(labels, used["train"]) for role, labels in used.items()}
    return {role: [class_names[label] for label in labels] for role, labels in strange.items() if len(labels)}


def _unmeasured(used: Mapping[str, np.ndarray], class_names: list[str]) -> dict[str, list[str]]:
    lacking = {role: np.setdiff1d(used["train"], labels) for role, labels in used.items()}
    return {role: [class_names[label] for label in labels] for role, labels in lacking.items() if len(labels)}


def _warn(facts: DataFacts) -> None:
    """Warns of what makes figures mean less than they seem to."""
    if facts.without_training_images:
        names = facts.without_training_images
        classes = counted(len(names), "class has", "classes have")
        logger.warning("%s no training image: %s", classes, list_names(names))
    for role, names in facts.first_seen.items():
        classes = counted(len(names), f"class of {role} is", f"classes of {role} are")
        logger.warning("%s not in the training images: %s", classes, list_names(names))
    for role, names in facts.unmeasured.items():
        classes = counted(len(names), "class has", "classes have")
        logger.warning("%s no %s image: %s", classes, role, list_names(names))
    for role, count in (facts.shared or {}).items():
        if count:
            images = counted(facts.splits[role].images, f"{role} image")
            also = "is also a training image" if count == 1 else "are also training images"
            logger.warning("%d of %s %s", count, images, also)
    if facts.images is not None and facts.images.highest < 16:
        logger.warning("the images are nearly black: their highest value is %d of 255", facts.images.highest)
