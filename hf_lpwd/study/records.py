"""The records of a study: reading and checking them, packing them into one file.

A record is one JSON object for one run. A folder holds one file for each record; a `.jsonl` or `.jsonl.gz`
file holds one line for each record.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError
from hf_lpwd.study.record import Record

#: The study's plan, which stands in the folder of the records.
PLAN = "plan.json"
PACKED = (".jsonl", ".jsonl.gz")

_SHOWN = 3


def load_records(*paths: str) -> list[Record]:
    """Reads and checks the records in folders, or in files of lines (`.jsonl`, `.jsonl.gz`).

    Of several paths, each record keeps the name of its file, which names its task in the report.

    Raises:
        BadInputError: There is no record, one cannot be read or does not fit the schema, or two are of the
            same run; one line that names file and key.
    """
    first: dict[str, str] = {}
    records: list[Record] = []
    faults: list[str] = []
    for source, name, text in ((path, *found) for path in paths for found in _texts(Path(path))):
        try:
            record = Record.model_validate(json.loads(text, parse_constant=_no_number))
            if len(paths) > 1:
                record.task["file"] = file_name(source)
        except ValidationError as error:
            faults += [f"{name}: {_misfit(fault)}" for fault in error.errors()]
            continue
        except (ValueError, RecursionError) as error:
            faults.append(f"{name} cannot be read: {error}")
            continue
        if record.id in first:
            faults.append(f"{name} holds the same run as {first[record.id]}")
            continue
        first[record.id] = name
        records.append(record)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more misfits" if len(faults) > _SHOWN else ""
        raise BadInputError("; ".join(faults[:_SHOWN]) + more)
    if not records:
        raise BadInputError(f"{', '.join(paths)} holds no record of hf-lpwd study")
    return sorted(records, key=_order)


def pack_records(folders: Sequence[str], file: str) -> int:
    """Packs the records of folders into one file of lines that reads as they do; one folder with its plan.

    The bytes depend on the records alone: sorted by id, keys sorted, no time stamp in the compressed file.

    Args:
        folders: The records.
        file: Path to write; must end in `.jsonl` or `.jsonl.gz`.

    Returns:
        The number of records.

    Raises:
        BadInputError: A record does not fit, the file has another ending, or one of several folders has a
            plan.
    """
    if not file.endswith(PACKED):
        raise BadInputError(f"{file} must end in {' or '.join(PACKED)}")
    number = len(load_records(*folders))
    if len(folders) > 1 and (planned := [folder for folder in folders if (Path(folder) / PLAN).exists()]):
        raise BadInputError(
            f"{planned[0]} has a plan, and a file holds one: pack each folder by itself, report reads several"
        )
    texts = (text for folder in folders for _, text in _texts(Path(folder)))
    objects = sorted(map(json.loads, texts), key=lambda one: one["id"])
    plan = Path(folders[0]) / PLAN
    if plan.exists():
        objects.insert(0, {"plan": json.loads(plan.read_text(encoding="utf-8"))})
    lines = [json.dumps(one, sort_keys=True, separators=(",", ":")) for one in objects]
    content = "".join(f"{line}\n" for line in lines).encode()
    if file.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as compressed:
            compressed.write(content)
        content = buffer.getvalue()
    write_bytes(file, content)
    return number


def file_name(path: str) -> str:
    """What a report over several files calls one of them."""
    return Path(path).name.partition(".")[0]


def plan_text(path: str) -> str | None:
    """The plan that stands with the records of a folder or a file of lines, None if there is none."""
    plan = Path(path) / PLAN
    if not Path(path).is_file():
        return plan.read_text(encoding="utf-8") if plan.exists() else None
    first = next(iter(_lines(Path(path))), "")
    return json.dumps(json.loads(first)["plan"]) if first.startswith('{"plan":') else None


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").splitlines()


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yields a name and the text of each record."""
    try:
        if path.is_dir():
            for file in sorted(path.glob("*.json")):
                if file.name != PLAN:
                    yield str(file), file.read_text(encoding="utf-8")
        elif path.name.endswith(PACKED):
            for number, line in enumerate(_lines(path), 1):
                if line.strip() and not line.startswith('{"plan":'):
                    yield f"{path} line {number}", line
        elif not path.exists():
            raise BadInputError(f"{path} does not exist")
        else:
            raise BadInputError(f"{path} must be a folder of records, or a file {' or '.join(PACKED)}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None


def _order(record: Record) -> tuple[Any, ...]:
    settings = record.settings
    given = (settings.weight_decay, settings.total_decay, settings.learning_rate)
    rates = [-1.0 if rate is None else rate for rate in given]
    return (record.task.get("file", ""), record.method, *rates, record.seed, record.id)


def _misfit(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = "" if fault["type"] in ("missing", "value_error") else f", not {fault['input']!r:.60}"
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
