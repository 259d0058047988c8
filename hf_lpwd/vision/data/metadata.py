"""Metadata files beside images: the label and the split that they give each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from hf_lpwd.messages import BadInputError, counted
from hf_lpwd.vision.data.facts import list_names
from hf_lpwd.vision.data.labels import without_missing
from hf_lpwd.vision.data.listing import Key, Listing
from hf_lpwd.vision.data.split_names import column_note, split_column
from hf_lpwd.vision.data.tables import LABEL_COLUMNS, choice_note, read_rows


@dataclass
class Metadata:
    """What metadata files say.

    Attributes:
        labels: The label of each image.
        splits: The split of each image, if they name splits.
        label_column: Name of the label column, None without labels.
        said: What was decided about them, a sentence each.
        column_notes: Which columns name the splits, a sentence each.
    """

    labels: dict[Key, Any] = field(default_factory=dict)
    splits: dict[Key, str] = field(default_factory=dict)
    label_column: str | None = None
    said: list[str] = field(default_factory=list)
    column_notes: list[str] = field(default_factory=list)


def read_metadata(listing: Listing, label_column: str | None) -> Metadata:
    """Reads the metadata files of a folder.

    Args:
        listing: The files.
        label_column: Default: one of `LABEL_COLUMNS`.

    Raises:
        BadInputError: If they name files that are not there, in several columns, or give one image several
            labels or splits.
    """
    found = Metadata()
    there = {file.key for file in listing.images}
    for file in listing.metadata:
        shown = "/".join(file.key)
        rows = read_rows(file.path)
        files = [column for column in rows if column == "file_name" or column.endswith("_file_name")]
        files.sort(key=lambda column: column != "file_name")
        wanted = LABEL_COLUMNS if label_column is None else (label_column,)
        column = next((column for column in wanted if column in rows), None)
        if column is None or not files:
            found.said.append(f"{shown} has no label column (it has {list_names(rows)}) and is not used")
            continue
        if len(files) > 1:
            if files[0] != "file_name":
                raise BadInputError(
                    f"{shown} names files in {len(files)} columns, {list_names(files)}: call the one of the "
                    "images file_name"
                )
            others = list_names(files[1:])
            found.said.append(f"{shown}: The images are those of the column file_name, not {others}")
        found.label_column = column
        if note := choice_note("label", column, wanted, rows):
            found.said.append(f"{shown}: {note}")
        paths = [PurePosixPath(str(path).replace("\\", "/")) for path in rows[files[0]]]
        keys = [(*file.folders, *path.parts) for path in paths]
        label_of = _one_each(keys, without_missing(rows[column]), found.labels, shown, "label")
        if len(label_of) < len(keys):
            words = "row repeats another and is", "rows repeat another and are"
            found.said.append(f"{shown}: {counted(len(keys) - len(label_of), *words)} left out")
        missing = [key for key in label_of if key not in there]
        if missing:
            raise BadInputError(
                f"{shown} names {counted(len(missing), 'file that is', 'files that are')} not there, the "
                f"first {'/'.join(missing[0][len(file.folders) :])[-100:]}"
            )
        found.labels |= label_of
        if (of_splits := split_column(rows)) is not None:
            column, named = of_splits
            of_rows = [named[str(value)] for value in rows[column]]
            found.splits |= _one_each(keys, of_rows, found.splits, shown, "split")
            found.column_notes.append(column_note(column, named))
    return found


def _one_each(
    keys: list[Key], values: list[Any], before: Mapping[Key, Any], shown: str, what: str
) -> dict[Key, Any]:
    """Returns the value of each image; raises if rows of one image differ, also from those `before`."""
    found: dict[Key, Any] = {}
    differing: dict[Key, tuple[Any, Any]] = {}
    for key, value in zip(keys, values, strict=True):
        first = found.setdefault(key, before.get(key, value))
        if first != value:
            differing.setdefault(key, (first, value))
    if differing:
        key, (one, other) = next(iter(differing.items()))
        raise BadInputError(
            f"{shown} gives {counted(len(differing), 'file')} more than one {what}, the first "
            f"{'/'.join(key)[-100:]}: {one!r} and {other!r}; keep one row of each"
        )
    return found
