"""The files of a folder -> its splits and the class of each image, from folder names and metadata files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_lpwd.messages import BadInputError, counted, escaped, unknown
from hf_lpwd.vision.data.facts import list_names
from hf_lpwd.vision.data.labels import rename_hint
from hf_lpwd.vision.data.listing import File, Key, Listing
from hf_lpwd.vision.data.metadata import read_metadata
from hf_lpwd.vision.data.split_names import role_of, roles_of
from hf_lpwd.vision.data.tables import LABEL_COLUMNS

logger = logging.getLogger(__name__)


@dataclass
class Layout:
    """A folder of images as a dataset.

    Attributes:
        paths: The image files of each split.
        labels: For each of them its class's name, or the value in a metadata file, or None.
        class_names: The classes, if the training images have them from their folders.
        label_column: Name of the label column.
        left_out: Images that are not used: why, and how many.
        notes: What was decided, a sentence each.
    """

    paths: dict[str, list[str]]
    labels: dict[str, list[Any]]
    class_names: list[str] | None
    label_column: str
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        """Adds a note, and warns of it."""
        self.notes.append(sentence)
        logger.warning("%s", escaped(sentence))


@dataclass(frozen=True)
class _Item:
    """An image, and the folders between the folder of its split and itself."""

    file: File
    folders: tuple[str, ...]


def find_layout(
    listing: Listing, *, label_column: str | None = None, class_names: Sequence[str] | None = None
) -> Layout:
    """Finds the splits of a folder of images, and the label of each image.

    A split is a folder with a usual name (see `ROLES`), next to others of its kind, above or inside the class
    folders. The classes are the folders in which the training images lie; where folders lie in folders, the
    outermost ones, as in torchvision, with a warning. A metadata file with a column of labels goes first.

    Args:
        listing: The files.
        label_column: Column of the labels in metadata files; default: one of `LABEL_COLUMNS`.
        class_names: The classes of a model, by which class folders are found; default: the training images'.

    Raises:
        BadInputError: If no metadata file has `label_column`, or a class of another split no training image.
    """
    layout = Layout({}, {}, None, label_column or LABEL_COLUMNS[0])
    splits = _find_splits(listing, layout)
    read = read_metadata(listing, label_column)
    metadata, named_splits = read.labels, read.splits
    layout.label_column = read.label_column or layout.label_column
    for sentence in read.said:
        layout.say(sentence)
    if len(splits) > 1:
        _say_other_splits(splits, named_splits, layout)
    elif named_splits:
        layout.notes += read.column_notes
        [items], splits = splits.values(), {}
        # Images without a row are left out below.
        train = next(split for split in named_splits.values() if role_of(split) == "train")
        for item in items:
            splits.setdefault(named_splits.get(item.file.key, train), []).append(item)
    if label_column not in (None, LABEL_COLUMNS[0]) and not metadata:
        raise BadInputError(
            f"no metadata file has the label column {label_column!r}, and folders name the classes"
        )
    with_images = {name for file in listing.images for name in file.folders}
    empty = {folders[-1] for folders in listing.folders if folders} - with_images
    if any(map(role_of, empty)):
        layout.say(f"Folders of splits without an image: {list_names(sorted(filter(role_of, empty)))}")
    known = None if class_names is None else list(class_names)
    # The training images come first: they define the classes.
    for split in sorted(splits, key=lambda split: role_of(split) != "train"):
        items = splits[split]
        with_row = [item for item in items if item.file.key in metadata]
        if with_row:
            layout.left_out["image without a row in its metadata file"] += len(items) - len(with_row)
            items, labels = with_row, [metadata[item.file.key] for item in with_row]
            if known is not None:
                labels = [None if label is None else str(label) for label in labels]
            else:
                known = sorted({str(label) for label in labels if label is not None})
            _say_overruled(items, labels, split, layout)
        else:
            items, labels = _labels_by_folder(items, split, known, layout, listing, class_names is not None)
            if known is None and any(labels):
                layout.class_names = known = sorted(set(filter(None, labels)))
        if known is not None and class_names is None:
            _require_known([str(label) for label in labels if label is not None], known, split)
        layout.paths[split] = [item.file.path for item in items]
        layout.labels[split] = labels
    layout.left_out = +layout.left_out
    return layout


def _find_splits(listing: Listing, layout: Layout) -> dict[str, list[_Item]]:
    """Returns the images by the name of their split, ``"train"`` if there is none; counts the others."""
    for depth in range(max((len(file.folders) for file in listing.images), default=0)):
        inner = [file for file in listing.images if len(file.folders) > depth]
        names = {file.folders[depth] for file in inner}
        if _are_splits(names, depth, listing):
            return _by_split(listing, depth, layout)
        if roles := roles_of(sorted(names)):
            layout.say("The splits are the folders " + ", ".join(f"{name} ({roles[name]})" for name in roles))
            return _by_split(listing, depth, layout, roles)
        if len(names) > 1:
            deeper = {file.folders[depth + 1] if len(file.folders) > depth + 1 else "" for file in inner}
            if _are_splits(deeper, depth + 1, listing) and all(map(role_of, deeper)):
                return _by_split(listing, depth + 1, layout, keep=depth)
            break
    return {"train": [_Item(file, file.folders) for file in listing.images]}


def _say_other_splits(splits: Mapping[str, list[_Item]], named: Mapping[Key, str], layout: Layout) -> None:
    """Says that metadata files put images into other splits than their folders, which are used."""
    roles = [
        (role_of(split), role_of(named[item.file.key]))
        for split, items in splits.items()
        for item in items
        if item.file.key in named
    ]
    if differing := sum(folder != column for folder, column in roles):
        layout.say(
            f"The splits are the folders ({list_names(splits)}), not those that a metadata file names, which "
            f"differ for {differing} of {counted(len(roles), 'image')}"
        )


def _are_splits(names: set[str], depth: int, listing: Listing) -> bool:
    """Whether folders of these names are splits, and not classes that are called train, test..."""
    if all(map(role_of, names)):
        return bool(names)
    training = {name for name in names if role_of(name) == "train"}
    held = [file.folders for file in listing.metadata] + [file.folders[:-1] for file in listing.images]
    return any(len(folders) > depth and folders[depth] in training for folders in held)


def _by_split(
    listing: Listing, depth: int, layout: Layout, roles: dict[str, str] | None = None, keep: int | None = None
) -> dict[str, list[_Item]]:
    splits: dict[str, list[_Item]] = {}
    inner = [file for file in listing.images if len(file.folders) > depth]
    layout.left_out["image outside the folders of the splits"] += len(listing.images) - len(inner)
    for file in inner:
        name = file.folders[depth]
        split = name if roles is None else roles.get(name, name)
        if role_of(split) is None:
            layout.left_out[f"image in {split}, beside the folders of the splits"] += 1
        else:
            above = () if keep is None else (file.folders[keep],)
            splits.setdefault(split, []).append(_Item(file, above + file.folders[depth + 1 :]))
    return splits


def _labels_by_folder(
    items: list[_Item], split: str, known: list[str] | None, layout: Layout, listing: Listing, of_model: bool
) -> tuple[list[_Item], list[Any]]:
    """Returns the images that lie in class folders and their classes; all of them, and None, if none does.

    Where `known` are the classes `of_model`, folders that are none of them still name classes.
    """
    level = _class_level(items) if known is None else _level_of(items, known)
    if level is None and of_model:
        level = _class_level(items)
    inside = [item for item in items if level is not None and len(item.folders) > level]
    if not inside or level is None:
        if known is not None:
            where, folders = "unlabelled", sorted({item.folders[0] for item in items if item.folders})
            if folders:
                hint = rename_hint(sorted({name for item in items for name in item.folders}), known)
                where = f"in {list_names(folders)}, which is no class of the training images{hint}"
            are = counted(len(items), "image is", "images are")
            layout.notes.append(f"{split} is not used: its {are} {where}")
        return items, [None] * len(items)
    layout.left_out[f"image outside the class folders of {split}"] += len(items) - len(inside)
    labels = [item.folders[level] for item in inside]
    if known is None:
        inner = sorted({item.folders[level + 1] for item in inside if len(item.folders) > level + 1})
        if len(inner) > 1:
            layout.say(
                f"The classes are the outer folders ({list_names(sorted(set(labels)))}), not the folders "
                f"inside them ({list_names(inner)})"
            )
        _say_empty(inside[0], level, set(labels), layout, listing)
    return inside, list(labels)


def _class_level(items: list[_Item]) -> int | None:
    """Returns the depth of the class folders of training images: the first with several, or with images."""
    for level in range(max((len(item.folders) for item in items), default=0)):
        deep = [item.folders for item in items if len(item.folders) > level]
        several = len({folders[level] for folders in deep}) > 1
        if several or any(len(folders) == level + 1 for folders in deep):
            return level
    return None


def _level_of(items: list[_Item], known: list[str]) -> int | None:
    """Returns at which level of folders most names are those of classes; None if none is at any."""
    names = set(known)
    counts = Counter(level for item in items for level, name in enumerate(item.folders) if name in names)
    return max(sorted(counts), key=counts.__getitem__, default=None)


def _require_known(labels: list[str], known: list[str], split: str) -> None:
    strange = Counter(labels)
    for name in known:
        del strange[name]
    if strange:
        name = next(iter(strange))
        raise BadInputError(
            f"{split}: {counted(sum(strange.values()), 'image is', 'images are')} of no class that the "
            f"training images have: {unknown('class', name, known)} (the {len(known)} classes are "
            f"{list_names(known)}); move them away or add training images{rename_hint(strange, known)}"
        )


def _say_empty(item: _Item, level: int, classes: set[str], layout: Layout, listing: Listing) -> None:
    """Says which class folders next to that of `item` hold no image."""
    at = len(item.file.folders) - len(item.folders) + level
    around = item.file.folders[:at]
    names = {folders[at] for folders in listing.folders if len(folders) == at + 1 and folders[:at] == around}
    empty = sorted(name for name in names - classes if role_of(name) is None)
    if empty:
        layout.say(f"Class folders without an image that can be read: {list_names(empty)}")


def _say_overruled(items: list[_Item], labels: list[Any], split: str, layout: Layout) -> None:
    """Says that a metadata file labels images otherwise than the class folders around them."""
    level = _class_level(items) or 0
    around = [item.folders[level] if len(item.folders) > level else None for item in items]
    folders = sorted({folder for folder in around if folder is not None})
    differing = sum(folder != str(label) for folder, label in zip(around, labels, strict=True))
    if len(folders) > 1 and differing:
        layout.say(
            f"The labels of {split} are those of the metadata file, not the names of {len(folders)} class "
            f"folders ({list_names(folders)}): they differ for {differing} of {len(items)} images"
        )
