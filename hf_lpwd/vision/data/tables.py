"""Files of rows (CSV, TSV, JSON, parquet, arrow) -> datasets whose images are found."""

from __future__ import annotations

import base64
import binascii
import csv
import glob
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import datasets
import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
from datasets import Dataset
from PIL import Image

from hf_lpwd.messages import BadInputError, counted, first_line
from hf_lpwd.vision.data.decoding import URL

#: Suffix of a file that holds rows -> the builder of `datasets` that reads it; None: `read_rows` does.
BUILDERS: dict[str, str | None] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": None,
    ".jsonl": None,
    ".csv": None,
    ".tsv": None,
}
IMAGE_COLUMNS = ("image", "img", "file_name")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_BASE64 = re.compile(r"(data:image/[\w.+-]+;base64,)?(?P<text>[A-Za-z0-9+/\s]{40,}={0,2}\s*)")


def read_tables(
    paths: Sequence[str],
    image_column: str | None = None,
    may_lack_images: bool = False,
    cache_dir: str | None = None,
) -> Dataset:
    """Reads files of the same columns, one after the other.

    Text in the column of images is a URL, the image in base64, or a path from the folder of the file (or,
    if it is not there, from the working directory).

    Args:
        paths: The files.
        image_column: Default: one of `IMAGE_COLUMNS`.
        may_lack_images: Keep rows whose image file is not there.
        cache_dir: Where `datasets` keeps what it converts.

    Raises:
        BadInputError: If a file cannot be read, or names image files that are not there.
    """
    parts = []
    for (folder, suffix), group in groupby(sorted(paths, key=_kind), _kind):
        files = list(group)
        builder = BUILDERS[suffix]
        if builder is None:
            part = datasets.concatenate_datasets([Dataset.from_dict(read_rows(path)) for path in files])
        else:
            part = datasets.load_dataset(
                builder, data_files=[glob.escape(path) for path in files], split="train", cache_dir=cache_dir
            )
        wanted = IMAGE_COLUMNS if image_column is None else (image_column,)
        column = next((name for name in wanted if name in part.column_names), None)
        if column is not None and isinstance(part.features[column], dict):
            part = _with_text(part, column)
        if column is not None and _is_text(part.features[column]):
            part = _with_images(part, column, folder, files[0], may_lack_images)
        parts.append(part)
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def choice_note(what: str, chosen: str, usual: Sequence[str], columns: Iterable[str]) -> str | None:
    """Says which other columns of usual names there are; None if there are none.

    Example:
        >>> choice_note("label", "label", ("label", "labels"), ["image", "labels", "label"])
        'The labels are those of the column label, not labels: --label_column_name takes another'
    """
    # Beside images, names of files only say where they come from.
    others = [column for column in usual if column in columns and column not in (chosen, "file_name")]
    return (
        f"The {what}s are those of the column {chosen}, not {', '.join(others)}: --{what}_column_name takes "
        "another"
        if others
        else None
    )


def read_csv(path: str) -> dict[str, list[str]]:
    """Reads comma, semicolon, tab or bar separated text with a header; every value stays the text that it is.

    So "007" keeps its zeros, and "None" and "NA" are values like others.

    Raises:
        BadInputError: If the file is empty or not UTF-8, has two columns of one name, or a line has another
            number of values.
    """
    name = os.path.basename(path)
    limit = csv.field_size_limit(sys.maxsize)  # an image in base64 is longer than the usual 131,072
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max("\t,;|" if path.lower().endswith(".tsv") else ",;\t|", key=header.count)
            file.seek(0)
            lines = csv.reader(file, delimiter=separator, skipinitialspace=True)
            columns = [column.strip() for column in next(lines, [])]
            twice = next((column for column in columns if columns.count(column) > 1), None)
            if twice is not None:
                raise BadInputError(f"{name} has two columns {twice!r}: rename one")
            rows = []
            for values in lines:
                if len(values) == len(columns):
                    rows.append(values)
                elif values:
                    raise BadInputError(
                        f"{name} line {lines.line_num} has {counted(len(values), 'value')}, the header "
                        f"{len(columns)}"
                    )
    except UnicodeDecodeError:
        raise BadInputError(f"{name} is not text in UTF-8: save it in this encoding") from None
    except csv.Error as error:
        raise BadInputError(f"{name} cannot be read: {error}") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise BadInputError(f"{name} has no rows below its first line, which names the columns")
    return {column: [row[index] for row in rows] for index, column in enumerate(columns)}


def read_rows(path: str) -> dict[str, list[Any]]:
    """Reads a file of rows as columns: CSV, TSV, JSON (rows in lines or a list, or columns) or parquet.

    Text stays text, also where it looks like a number or a date.

    Raises:
        BadInputError: If it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_csv(path)
    try:
        if suffix == ".parquet":
            return pyarrow.parquet.read_table(path).to_pydict()
        text = Path(path).read_text(encoding="utf-8-sig")
        try:
            rows = json.loads(text)
        except json.JSONDecodeError:  # a row a line
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        if isinstance(rows, dict) and all(isinstance(column, list) for column in rows.values()):
            return rows
        rows = [rows] if isinstance(rows, dict) else rows
        return {column: [row.get(column) for row in rows] for column in dict.fromkeys(chain(*rows))}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadInputError(f"{os.path.basename(path)} cannot be read: {first_line(error)}") from error


def _kind(path: str) -> tuple[str, str]:
    return os.path.dirname(os.path.abspath(path)), Path(path).suffix.lower()


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _with_text(part: Dataset, column: str) -> Dataset:
    """Puts bytes that are text, as JSON has them, in the place of cells that hold them."""
    if not _is_text(part.features[column].get("bytes")):
        return part
    texts = [(cell or {}).get("bytes") for cell in part.select_columns([column])[:][column]]
    return part.remove_columns(column).add_column(column, texts)


def _with_images(part: Dataset, column: str, folder: str, path: str, may_lack_images: bool) -> Dataset:
    """Replaces the text in the column by the images that it names or holds."""
    texts: list[str | None] = part.select_columns([column])[:][column]
    first = next((text for text in texts if text), "")
    if not _is_there(first, folder) and _decode(first) is not None:
        cells: list[dict[str, Any]] = [{"bytes": _decode(text or "") or b"", "path": None} for text in texts]
    else:
        found = [_locate(text, folder) if text else None for text in texts]
        missing = [row for row, place in enumerate(found) if place is None]
        if missing and not may_lack_images:
            text = texts[missing[0]]
            raise BadInputError(
                f"{os.path.basename(path)}: {len(missing)} of {len(texts)} images are not there, the first "
                f"{(text or 'without a name')[-80:]!r} (row {missing[0]}); paths start at the file's folder"
            )
        cells = [
            {"bytes": None, "path": place or os.path.join(folder, text or "")}
            for place, text in zip(found, texts, strict=True)
        ]
    return part.remove_columns(column).add_column(column, cells, feature=datasets.Image())


def _is_there(text: str, folder: str) -> bool:
    try:
        return os.path.isfile(os.path.join(folder, os.path.expanduser(text)))
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return False


def _locate(text: str, folder: str) -> str | None:
    if text.lower().startswith("file:"):
        text = url2pathname(urlsplit(text).path)
    elif URL.match(text):
        return text
    for base in (folder, os.getcwd()):
        for name in (text, text.replace("\\", "/")):
            if _is_there(name, base):
                return os.path.join(base, os.path.expanduser(name))
    return None


def _decode(text: str) -> bytes | None:
    """Returns the bytes of an image in base64; None if the text is something else."""
    match = _BASE64.fullmatch(text)
    if match is None:
        return None
    try:
        content = base64.b64decode("".join(match["text"].split()), validate=True)
        with Image.open(io.BytesIO(content)):
            return content
    except (binascii.Error, OSError):
        return None
