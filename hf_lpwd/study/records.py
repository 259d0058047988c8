"""The records of a study's runs: their schema, reading them, packing them into one file.

A record is one JSON object for one run. A folder holds one file for each record; a `.jsonl` or `.jsonl.gz`
file holds one line for each record.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError

#: The version of the record's form that runs write; the reader knows this one and those before it.
FORMAT = 1
#: The study's plan, which stands in the folder of the records.
PLAN = "plan.json"
PACKED = (".jsonl", ".jsonl.gz")

# JSON has no NaN: a number that was not finite stands as null.
Number = Annotated[float, Field(allow_inf_nan=False)] | None
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=2**53)]
_SHOWN = 3


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Metrics(_Part):
    """Metrics of one split; the accuracy is in 0..1, a loss that was not finite is null."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, Number]
    accuracy: Score
    loss: Number = None


class Epoch(Metrics):
    """Metrics on validation after an evaluation."""

    epoch: Rate
    step: Count


class Logged(_Part):
    """The training loss at a logged step."""

    epoch: Rate
    step: Count
    loss: Number = None


class Layer(_Part):
    """What decays of a layer, and at which rate."""

    layer: str
    modules: list[str]
    rate: Rate
    parameters: Count
    decayed: Count


class Series(_Part):
    """Values by layer at each of `steps`."""

    steps: list[Count] = []
    norms: dict[str, list[Number]] = {}
    rates: dict[str, list[Number]] = {}

    @model_validator(mode="after")
    def _as_many_values_as_steps(self) -> Series:
        for name, values in (self.norms | self.rates).items():
            if len(values) != len(self.steps):
                raise ValueError(f"{name!r} has {len(values)} values for {len(self.steps)} steps")
        return self


class Error(_Part):
    """Why a run failed."""

    type: str
    message: str


class Times(_Part):
    """When a run started, and how long it took, in seconds."""

    started: str | None = None
    train_seconds: Rate | None = None
    seconds: Rate = 0.0


class Settings(BaseModel):
    """The settings that the report computes with; all others are free."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, JsonValue]
    seed: Count | None = None
    weight_decay: Rate | None = None
    learning_rate: Rate | None = None


class Record(_Part):
    """One run: what it was, how it ended, what was measured; see `hf_lpwd.study.run.compute_record`."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    settings: Settings
    method: Annotated[str, Field(min_length=1)]
    status: Literal["completed", "failed"]
    versions: dict[str, str]
    times: Times
    error: Error | None = None
    metrics: dict[Literal["validation", "test"], Metrics] = {}
    epochs: list[Epoch] = []
    test_accuracy_after_epochs: Annotated[list[Score], Field(min_length=1)] | None = None
    training: list[Logged] = []
    weight_norms: Series = Series()
    layers: list[Layer] = []
    opposing_penalty: Series = Series()
    pairing: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _id_of_the_settings(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("settings"), dict):
            expected = record_id(data["settings"])
            if data.get("id") != expected:
                raise ValueError(f"the id is not that of the settings, {expected}: was the file edited?")
        return data

    @model_validator(mode="after")
    def _complete(self) -> Record:
        needed = (
            {"error": self.error}
            if self.status == "failed"
            else {
                "metrics.validation": self.metrics.get("validation"),
                "layers": self.layers,
                "pairing": self.pairing,
            }
        )
        for name, value in needed.items():
            if not value:
                raise ValueError(f"{name} is missing, which a {self.status} run has")
        return self


def record_id(settings: Mapping[str, Any]) -> str:
    """Hash of a run's settings, the name of its record: 16 hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_records(path: str) -> list[dict[str, Any]]:
    """Reads and checks the records in a folder, or in one file of lines (`.jsonl`, `.jsonl.gz`).

    Raises:
        BadInputError: There is no record, one cannot be read or does not fit the schema, or two are of the
            same run; one line that names file and key.
    """
    found: dict[str, str] = {}
    records, faults = [], []
    for name, text in _texts(Path(path)):
        try:
            data = json.loads(text, parse_constant=_no_number)
            Record.model_validate(data)
        except ValidationError as error:
            faults += [f"{name}: {_misfit(fault)}" for fault in error.errors()]
            continue
        except (ValueError, RecursionError) as error:
            faults.append(f"{name} cannot be read: {error}")
            continue
        if data["id"] in found:
            faults.append(f"{name} holds the same run as {found[data['id']]}")
            continue
        found[data["id"]] = name
        records.append(data)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more misfits" if len(faults) > _SHOWN else ""
        raise BadInputError("; ".join(faults[:_SHOWN]) + more)
    if not records:
        raise BadInputError(f"{path} holds no record of hf-lpwd sweep")
    return sorted(records, key=_order)


def pack_records(folder: str, file: str) -> int:
    """Packs the records of a folder, and its plan, into one file of lines that reads as the folder does.

    The bytes depend on the records alone: sorted by id, keys sorted, no time stamp in the compressed file.

    Args:
        folder: The records.
        file: Path to write; must end in `.jsonl` or `.jsonl.gz`.

    Returns:
        The number of records.

    Raises:
        BadInputError: A record does not fit, or the file has another ending.
    """
    if not file.endswith(PACKED):
        raise BadInputError(f"{file} must end in {' or '.join(PACKED)}")
    records = sorted(load_records(folder), key=lambda record: record["id"])
    lines = [json.dumps(record, sort_keys=True, separators=(",", ":")) for record in records]
    content = "".join(f"{line}\n" for line in lines).encode()
    if file.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as compressed:
            compressed.write(content)
        content = buffer.getvalue()
    write_bytes(file, content)
    return len(records)


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yields a name and the text of each record."""
    try:
        if path.is_dir():
            for file in sorted(path.glob("*.json")):
                if file.name != PLAN:
                    yield str(file), file.read_text(encoding="utf-8")
        elif path.name.endswith(PACKED):
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield f"{path} line {number}", line
        else:
            raise BadInputError(f"{path} must be a folder of records, or a file {' or '.join(PACKED)}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    settings = record["settings"]
    rates = [settings.get(name) for name in ("weight_decay", "learning_rate", "seed")]
    return (record["method"], *(-1.0 if rate is None else float(rate) for rate in rates), record["id"])


def _misfit(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = "" if fault["type"] in ("missing", "value_error") else f", not {fault['input']!r:.60}"
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
