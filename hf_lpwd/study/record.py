"""The record of one run: its schema, how the run ended, its scores."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

#: The version of the record's form that runs write; the reader knows this one and those before it.
FORMAT = 2
# JSON has no NaN: a number that was not finite stands as null.
Number = Annotated[float, Field(allow_inf_nan=False)] | None
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=2**53)]
_DEFAULT_SEED = 42
_DIVERGED = re.compile(r"diverged|non-finite|not finite|\bnan\b", re.IGNORECASE)


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
    lr_scale: Rate = 1.0
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


class Environment(_Part):
    """Where a run was made."""

    device: str
    device_name: str
    threads: Count
    commit: str
    devices: Count | None = None


class Data(_Part):
    """The data of a run; by split the number of images, and a hash of images and labels."""

    num_classes: Annotated[int, Field(ge=2)]
    sizes: dict[str, Count]
    fingerprints: dict[str, str]
    test_cut_from_train: bool = False


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
    total_decay: Rate | None = None
    learning_rate: Rate | None = None

    def get(self, name: str) -> Any:
        """The value of any setting, None where the study left it out."""
        return getattr(self, name, None)


class Record(_Part):
    """One run: what it was, how it ended, what was measured; see `hf_lpwd.study.run.compute_record`."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    settings: Settings
    method: Annotated[str, Field(min_length=1)]
    status: Literal["completed", "diverged", "failed"]
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
    task: dict[Literal["data", "model", "file"], str] = {}
    environment: Environment | None = None
    data: Data | None = None
    correct: dict[Literal["test"], str] = {}
    weight_decay: Rate | None = None

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
        needed: dict[str, Any] = {"error": self.error}
        if self.status == "completed":
            needed = {
                "metrics.validation": self.metrics.get("validation"),
                "layers": self.layers,
                "pairing": self.pairing,
            }
        for name, value in needed.items():
            if not value:
                raise ValueError(f"{name} is missing, which a {self.status} run has")
        return self

    @property
    def seed(self) -> int:
        """The seed; where the study left it out, the Trainer's default."""
        return _DEFAULT_SEED if self.settings.seed is None else self.settings.seed

    @property
    def outcome(self) -> Literal["completed", "diverged", "failed"]:
        """How the run ended; records of format 1 do not tell apart what diverged."""
        if self.format == 1 and self.status == "failed" and self.error:
            return "diverged" if _DIVERGED.search(self.error.message) else "failed"
        if self.status == "completed":
            finals = [values[-1] for values in self.weight_norms.norms.values() if values]
            losses = [metrics.loss for metrics in self.metrics.values() if "loss" in metrics.model_fields_set]
            if None in finals or None in losses:
                return "diverged"
        return self.status

    def score(self, split: Literal["validation", "test"]) -> float | None:
        """Accuracy on a split, None if not measured; of a diverged run its last evaluation, or chance."""
        if self.outcome == "diverged":
            finite = [epoch.accuracy for epoch in self.epochs if epoch.loss is not None]
            if finite:
                return finite[-1]
            measured = self.metrics.get(split)
            chance = 1.0 / self.data.num_classes if self.data else 0.0
            return measured.accuracy if measured else chance
        return self.metrics[split].accuracy if split in self.metrics else None


def record_id(settings: Mapping[str, Any]) -> str:
    """Hash of a run's settings, the name of its record: 16 hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_score(run: Record) -> float:
    """Accuracy on test; on validation if no test split was read, in which case there is no verdict."""
    score = run.score("test")
    fallback = run.score("validation") if score is None else score
    assert fallback is not None
    return fallback
