"""Where the data of a run comes from: a folder, archive or file on this machine, the Hub, or scikit-learn."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from hf_lpwd.files import RECORD
from hf_lpwd.messages import BadInputError, counted, escaped, first_line
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.decoding import URL
from hf_lpwd.vision.data.digits import DIGITS, load_digits
from hf_lpwd.vision.data.facts import list_names
from hf_lpwd.vision.data.layout import find_layout
from hf_lpwd.vision.data.listing import Listing, is_archive, list_folder, refuse_run, unpack
from hf_lpwd.vision.data.split_names import by_column, role_of
from hf_lpwd.vision.data.tables import BUILDERS, read_tables

logger = logging.getLogger(__name__)

# How the reasons begin for which files are left out that are no images.
_HARMLESS = ("document ", "table", "folder ")


@dataclass
class Source:
    """A dataset as it was found.

    Attributes:
        name: Its name or path, for messages and the record.
        splits: Its splits by name.
        left_out: Files that are not used: why, and how many.
        notes: What was decided about it, a sentence each.
    """

    name: str
    splits: DatasetDict
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def load_source(
    args: DataTrainingArguments,
    *,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    class_names: Sequence[str] | None = None,
) -> Source:
    """Loads the dataset that the arguments name, with all splits and columns that it has.

    Args:
        args: Which data.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        token: Hub token for private datasets.
        class_names: The classes that class folders are compared with; default: those of the training images.

    Raises:
        BadInputError: If there is no such dataset, or it cannot be read; the message says why.
    """
    for given in (args.dataset_name, args.train_dir, args.validation_dir):
        if given is not None and URL.match(given):
            raise BadInputError(
                f"{given} is a URL, which is not read: download it, and give the path of the file"
            )
    if args.dataset_name is None and args.train_dir is None:
        return Source(DIGITS, load_digits())
    if args.train_dir is None:
        source = _load_named(args.dataset_name or "", args, cache_dir, token, class_names)
        source.splits, note = by_column(source.splits)
        source.notes += [] if note is None else [note]
        return source

    source = Source(args.train_dir, DatasetDict())
    names = class_names
    for split, path in (("train", args.train_dir), ("validation", args.validation_dir)):
        if path is None:
            continue
        part = _load_folder(_folder(path, cache_dir), path, args, cache_dir, names)
        if len(part.splits) > 1 or (split == "train" and role_of(*part.splits) != "train"):
            raise BadInputError(
                f"{path} is no folder of one split; it holds {list_names(part.splits)}: use --dataset_name"
            )
        source.splits[split] = data = next(iter(part.splits.values()))
        source.left_out += part.left_out
        source.notes += part.notes
        label = next((feature for feature in data.features.values() if hasattr(feature, "names")), None)
        names = names if names is not None or label is None else label.names
    return source


def _load_named(
    name: str,
    args: DataTrainingArguments,
    cache_dir: str | None,
    token: str | bool | None,
    class_names: Sequence[str] | None,
) -> Source:
    path = os.path.expanduser(name)
    is_path = name.startswith((".", "~")) or os.path.isabs(name) or path.count(os.sep) > 1
    # An output folder, with or without a record yet, does not stand in the way of a dataset on the Hub; a run
    # that has just begun holds its hidden lock there.
    entries = os.listdir(path) if os.path.isdir(path) else [RECORD]
    is_output = RECORD in entries or all(entry.startswith(".") for entry in entries)
    if os.path.isdir(path) and (is_path or not is_output):
        return _load_folder(Path(path), name, args, cache_dir, class_names)
    if is_archive(path):
        return _load_folder(_folder(name, cache_dir), name, args, cache_dir, class_names)
    if Path(path).suffix.lower() in BUILDERS:
        files = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
        if not files:
            raise BadInputError(f"no such file: {name}")
        if args.dataset_config_name is not None:
            raise BadInputError(f"{name} is a file without configurations: leave dataset_config_name out")
        if len(files) > 1:
            _refuse_mixed_splits(name, files)
        return Source(name, DatasetDict({"train": _read_tables(name, files, args, cache_dir)}))
    if is_path or os.path.isfile(path):
        _folder(name, cache_dir)
    options: dict[str, Any] = {"name": args.dataset_config_name, "token": token}
    if not is_output:
        return _load_dataset(name, path, cache_dir, **options)
    cache_dir = cache_dir and os.path.abspath(cache_dir)
    here = "there is no such dataset here"
    if os.path.isdir(path):
        here = f"the folder {name} {'is that of a run' if RECORD in entries else 'holds no image'}"
    # Away from the working directory, where `datasets` would take an output folder for the Hub's dataset.
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        return _load_dataset(name, path, cache_dir, here=f"{here}, and of the Hub: ", **options)


def _load_folder(
    folder: Path,
    name: str,
    args: DataTrainingArguments,
    cache_dir: str | None,
    class_names: Sequence[str] | None,
) -> Source:
    """Loads a folder of images, or of files that hold rows."""
    refuse_run(folder, name, "a dataset")
    saved_files = {"dataset_dict.json", "state.json", "dataset_info.json"} & set(os.listdir(folder))
    configured = _has_configuration(folder)
    if args.dataset_config_name is not None and not configured:
        raise BadInputError(f"{name} is a folder without configurations: leave dataset_config_name out")
    if "dataset_dict.json" in saved_files or len(saved_files) == 2:
        saved = datasets.load_from_disk(str(folder))
        return Source(name, saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved}))
    if configured:
        return _load_dataset(name, str(folder), cache_dir, name=args.dataset_config_name)
    listing = list_folder(folder, cache_dir)
    if listing.archives and listing.left_out["file .cls"]:  # WebDataset, in which files of a name are a row
        return _load_dataset(name, str(folder), cache_dir)
    if listing.images:
        source = _images_of(listing, name, args, class_names)
    elif listing.tables:
        source = _tables_of(listing, name, args, cache_dir)
    else:
        held = ", ".join(f"{count} x {why}" for why, count in listing.left_out.most_common(3)) or "no file"
        raise BadInputError(f"{name} has no image and no table that can be read; it holds {held}")
    archives = [Path(name).name] * is_archive(name) + listing.unpacked
    if archives:
        kind = "zip" if archives[0].lower().endswith("zip") else "tar"
        source.notes.insert(0, f"Unpacked from the {kind} archive {list_names(archives)}")
    source.left_out += listing.left_out
    _warn_of_loss(source)
    return source


def _images_of(
    listing: Listing, name: str, args: DataTrainingArguments, class_names: Sequence[str] | None
) -> Source:
    layout = find_layout(listing, label_column=args.label_column_name, class_names=class_names)
    names = layout.class_names
    splits = DatasetDict()
    unlabelled = [split for split, labels in layout.labels.items() if all(label is None for label in labels)]
    features = None
    if names is not None:
        label = datasets.ClassLabel(names=names)
        features = datasets.Features({"image": datasets.Image(), layout.label_column: label})
    for split, paths in layout.paths.items():
        columns = {"image": paths, layout.label_column: layout.labels[split]}
        data = datasets.Dataset.from_dict(columns, features=features)
        splits[split] = data.cast_column("image", datasets.Image())
    hint = ""
    if listing.tables:
        hint = f"; for labels in a table: --dataset_name {name}/{'/'.join(listing.tables[0].key)}"
    if class_names is None and any(split == "train" or role_of(split) == "train" for split in unlabelled):
        if 1 < len(unlabelled) == len(splits):
            hint += (
                f"; the folders {list_names(unlabelled)} are read as splits: if they are classes, rename "
                "them, or give a CSV file of the columns image and label as --dataset_name"
            )
        split = unlabelled[0]
        without = f"image of {split} has no label: it needs", f"images of {split} have no labels: they need"
        raise BadInputError(
            f"{name}: the {counted(len(layout.paths[split]), *without)} a folder for each class, or a "
            f"metadata.csv with the columns file_name and label{hint}"
        )
    if class_names is None and hint and names is not None and len(names) == 1:
        raise BadInputError(f"{name}: all images are in one class folder, {names[0]}{hint}")
    left_out = layout.left_out + Counter({"table": len(listing.tables)})
    return Source(name, splits, left_out, layout.notes)


def _tables_of(listing: Listing, name: str, args: DataTrainingArguments, cache_dir: str | None) -> Source:
    """Loads the files of a folder that hold rows, each for the split that its name or folder says."""
    splits: dict[str, list[str]] = {}
    rest: list[str] = []
    files = listing.tables + listing.metadata
    for file in files:
        words = [*reversed(file.folders), *re.split(r"[^a-z]+", Path(file.name).stem.lower())]
        role = next((role for word in words if (role := role_of(word))), None)
        (rest if role is None else splits.setdefault(role, [])).append(file.path)
    if splits and rest:
        listing.left_out["table whose name has no split"] += len(rest)
    parts = {
        split: _read_tables(name, paths, args, cache_dir)
        for split, paths in (splits or {"train": rest}).items()
    }
    return Source(name, DatasetDict(parts))


def _read_tables(name: str, paths: list[str], args: DataTrainingArguments, cache_dir: str | None) -> Dataset:
    with _one_line_errors(name):
        return read_tables(paths, args.image_column_name, args.skip_bad_images, cache_dir)


def _folder(path: str, cache_dir: str | None) -> Path:
    folder = Path(path).expanduser()
    if folder.is_file() and is_archive(folder):
        return unpack(folder, cache_dir)
    if folder.is_file():
        raise BadInputError(f"{path} is a file, not a folder of images; a table is given as --dataset_name")
    if not folder.is_dir():
        raise BadInputError(f"no such {'file' if is_archive(folder) else 'folder'}: {path}")
    return folder


def _has_configuration(folder: Path) -> bool:
    """Whether the folder is a copy of a dataset on the Hub whose README says what its files are."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    header = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return header is not None and re.search(r"^configs:", header[1], re.MULTILINE) is not None


def _refuse_mixed_splits(name: str, files: list[str]) -> None:
    """Raises if a glob would read test or validation files into the training data."""
    words = {word for file in files for word in re.split(r"[^a-z]+", Path(file).stem.lower())}
    found = {role for word in words - {"eval"} if (role := role_of(word))}
    if len(found) > 1:
        raise BadInputError(
            f"{name} matches files of several splits ({', '.join(sorted(found))}): name the folder"
        )


def _warn_of_loss(source: Source) -> None:
    """Warns of files that may be images and are not read; not of documents and tables."""
    lost = {why: count for why, count in source.left_out.items() if count and not why.startswith(_HARMLESS)}
    if lost:
        listed = ", ".join(f"{why} ({count})" for why, count in lost.items())
        files = counted(sum(lost.values()), "file is", "files are")
        logger.warning("%s: %s left out: %s", source.name, files, escaped(listed))


def _load_dataset(label: str, path: str, cache_dir: str | None, here: str = "", **kwargs: Any) -> Source:
    with _one_line_errors(label, kwargs.get("token"), here):
        return Source(label, datasets.load_dataset(path, cache_dir=cache_dir, **kwargs))


@contextlib.contextmanager
def _one_line_errors(name: str, token: str | bool | None = None, here: str = "") -> Iterator[None]:
    """Makes what fails in `datasets` a `BadInputError` of one line, without the token.

    `here` says what is on this machine instead of a dataset of the Hub.
    """
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        message = re.sub(r"\bhf_\w+", "hf_***", first_line(cause or error, 200))
        if isinstance(token, str) and token:
            message = message.replace(token, "***")
        raise BadInputError(f"dataset {name!r} cannot be loaded: {here}{message}") from error
