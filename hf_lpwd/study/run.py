"""One run of a study: settings in, record out."""

from __future__ import annotations

import base64
import hashlib
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_lpwd.messages import BadInputError
from hf_lpwd.plan import layer_name
from hf_lpwd.study.baselines import apply_baseline, baseline_callbacks
from hf_lpwd.study.callbacks import OpposingPenalty, TestAfterEpoch
from hf_lpwd.study.config import RunSpec
from hf_lpwd.study.quiet_run import layer_of_parameter, prepared, quiet_trainer
from hf_lpwd.study.record import FORMAT
from hf_lpwd.vision.data.image_files import fingerprints
from hf_lpwd.vision.failures import StopWhereNotFinite
from hf_lpwd.vision.finetune import PREFIXES
from hf_lpwd.vision.prepare import Run

_LIBRARIES = ("hf-lpwd", "torch", "transformers", "accelerate", "datasets", "timm", "numpy")
_TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def compute_record(spec: RunSpec, folder: str) -> dict[str, Any]:
    """Does one run and returns its record; a run that fails returns the record of its failure.

    Training, selection of the epoch on validation, and the one reading of the test split are those of
    `hf-lpwd train`; nothing is kept but the record. Two computations of one run on the same machine and
    versions differ in `times` alone.

    Args:
        spec: The run.
        folder: Where the run may write; it does not stay.

    Returns:
        A JSON object, whose schema is `hf_lpwd.study.record.Record`.
    """
    record = _identity(spec)
    started = time.time()
    times: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))}
    results: dict[str, Any] = {}
    try:
        _train(spec, folder, results)
        times["train_seconds"] = results.pop("train_seconds")
        record |= {"status": "completed", **results}
    except Exception as error:
        diverged = isinstance(error, BadInputError) and "training diverged" in str(error)
        record |= {
            "status": "diverged" if diverged else "failed",
            "error": {"type": type(error).__name__, "message": str(error)},
            **(results if diverged else {}),
        }
    record["times"] = times | {"seconds": round(time.time() - started, 3)}
    return record


def dead_record(spec: RunSpec) -> dict[str, Any]:
    """Returns the record of a run whose process died without an exception, time after time."""
    error = {"type": "WorkerDied", "message": "the process died; it may have run out of memory"}
    return {**_identity(spec), "status": "failed", "error": error, "times": {"seconds": 0.0}}


def _identity(spec: RunSpec) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": spec.id,
        "settings": spec.settings,
        "method": spec.method,
        "task": spec.task,
        "versions": versions(),
        "environment": environment(),
    }


def _train(spec: RunSpec, folder: str, results: dict[str, Any]) -> None:
    """Trains and evaluates; puts parts of the record into `results` as they are known."""
    with prepared(spec, folder) as (run, args):
        baseline = spec.settings.get("peer")
        pairing = {
            "initial_weights": _hash(_bytes(tensor) for tensor in run.model.state_dict().values()),
            "validation_rows": _hash([run.splits.rows["validation"].tobytes()]),
        }
        run, optimizer = apply_baseline(baseline, run, args)
        results |= {
            "layers": _layers(run),
            "pairing": pairing,
            "weight_decay": args.weight_decay,
            "data": {
                "num_classes": len(run.splits.class_names),
                "sizes": {role: len(images) for role, images in run.images.items()},
                "fingerprints": fingerprints(run.splits),
                "test_cut_from_train": run.splits.sources.get("test") == run.splits.sources["train"],
            },
        }
        opposing = OpposingPenalty(layer_of_parameter(run))
        # R_op is that of plain decay, which these are not.
        callbacks: list[Any] = baseline_callbacks(baseline) or [opposing]
        tested = None
        if spec.settings.get("paper_metric") and "test" in run.images:
            tested = TestAfterEpoch(run.images["test"], args.per_device_eval_batch_size)
            callbacks.append(tested)
        trainer = quiet_trainer(run, args, [*callbacks, StopWhereNotFinite()], optimizer)
        try:
            results["train_seconds"] = trainer.train().metrics["train_runtime"]
        finally:
            results |= _curves(trainer.state.log_history, tested)
            results["opposing_penalty"] = {"steps": opposing.steps, "rates": opposing.rates}
        for role, prefix in PREFIXES.items():
            if role in run.images:
                found = trainer.predict(run.images[role], metric_key_prefix=prefix)
                results.setdefault("metrics", {})[role] = _without(found.metrics, f"{prefix}_")
                if role == "test":
                    right = found.predictions.argmax(-1) == found.label_ids
                    results["correct"] = {role: base64.b64encode(np.packbits(right).tobytes()).decode()}


def _curves(history: list[dict[str, Any]], tested: TestAfterEpoch | None) -> dict[str, Any]:
    # The last evaluation of the validation split is the one of the selected checkpoint, after training.
    ends = (i for i, entry in enumerate(history) if "train_runtime" in entry)
    trained = history[: next(ends, len(history))]
    epochs = [
        {"epoch": entry["epoch"], "step": entry["step"], **_without(entry, "eval_")}
        for entry in trained
        if "eval_loss" in entry
    ]
    logged = [entry for entry in trained if "loss" in entry]
    keys = sorted({key for entry in logged for key in entry if key.startswith("weight_norm/")})
    norms = [entry for entry in logged if keys and keys[0] in entry]
    return {
        "epochs": epochs,
        **({} if tested is None else {"test_accuracy_after_epochs": tested.accuracies}),
        "training": [{key: entry[key] for key in ("epoch", "step", "loss")} for entry in logged],
        "weight_norms": {
            "steps": [entry["step"] for entry in norms],
            "norms": {key.partition("/")[2]: [entry[key] for entry in norms] for key in keys},
        },
    }


def _layers(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer_name(row.stack, row.layer),
            "modules": row.modules,
            "rate": row.rate,
            "lr_scale": row.lr_scale,
            "parameters": row.parameters,
            "decayed": row.decayed,
        }
        for row in run.plan.layers
    ]


def _without(entry: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose keys have a prefix, without it, and without what differs from run to run."""
    values = {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
    return {key: value for key, value in values.items() if key not in _TIMES}


def _bytes(tensor: torch.Tensor) -> bytes:
    # numpy knows no bfloat16.
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def in_one_thread(spec: RunSpec, folder: str) -> dict[str, Any]:
    """`compute_record` with one thread for torch, since runs are made side by side."""
    torch.set_num_threads(1)
    return compute_record(spec, folder)


def versions() -> dict[str, str]:
    """Python's version, and those of the libraries that decide a result."""
    found = {library: metadata.version(library) for library in _LIBRARIES}
    return {"python": platform.python_version(), **found}


def environment() -> dict[str, Any]:
    """Device, threads, and the commit of this package; its version if it does not lie in a checkout.

    The Trainer divides a batch over all devices that it sees, and so trains with a larger one.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = torch.cuda.get_device_name() if device is not None and device.type == "cuda" else _processor()
    return {
        "device": "cpu" if device is None else device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "devices": 1 if device is None else torch.accelerator.device_count(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _commit() -> str:
    package = Path(__file__).parents[1]
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12"]
    tracked = ["git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py"]
    try:
        subprocess.run(tracked, capture_output=True, check=True, timeout=20)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"version {metadata.version('hf-lpwd')}"
