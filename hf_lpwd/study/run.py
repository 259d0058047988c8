"""One run of a study: settings in, record out."""

from __future__ import annotations

import hashlib
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from io import StringIO
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from hf_lpwd.layer_log import QuietPrinter
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import layer_name
from hf_lpwd.study.callbacks import OpposingPenalty, TestAfterEpoch
from hf_lpwd.study.config import RunSpec
from hf_lpwd.study.methods import method_name
from hf_lpwd.study.peers import apply_peer, peer_callbacks
from hf_lpwd.study.records import FORMAT
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.finetune import PREFIXES, make_trainer
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.prepare import Run, prepare
from hf_lpwd.vision.training_args import ImageTrainingArguments

_LIBRARIES = ("hf-lpwd", "torch", "transformers", "accelerate", "datasets", "timm", "numpy")
_TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def compute_record(spec: RunSpec) -> dict[str, Any]:
    """Does one run and returns its record; a run that fails returns the record of its failure.

    Training, selection of the epoch on validation, and the one reading of the test split are those of
    `hf-lpwd train`; nothing is kept but the record. Two computations of one run on the same machine and
    versions differ in `times` alone.

    Returns:
        A JSON object: `format`, `id`, `settings`, `method`, `status` (``"completed"`` or ``"failed"``),
        `error` of a failed run (`type`, `message`), `versions`, `times`, and of a completed run

        - `metrics`: split -> metric -> value; the test split was read once, at the end;
        - `epochs`: validation metrics after each evaluation;
        - `test_accuracy_after_epochs`: for the paper's metric, where the study asked for it;
        - `training`: the training loss as logged;
        - `layers`: of each layer its rate, and the numbers of scalars in all and decayed;
        - `weight_norms`: steps, and each layer's weight norm at them;
        - `opposing_penalty`: steps, and R_op of each layer at them; without steps where it is not defined;
        - `pairing`: hashes of the initial weights and of the validation rows, equal for equal seeds.
    """
    record = _identity(spec)
    started = time.time()
    times: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))}
    try:
        results, durations = _train(spec)
        record |= {"status": "completed", **results}
        times |= durations
    except Exception as error:
        record |= {"status": "failed", "error": {"type": type(error).__name__, "message": str(error)}}
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
        "method": method_name(spec.settings),
        "versions": {"python": platform.python_version()}
        | {library: metadata.version(library) for library in _LIBRARIES},
    }


def _train(spec: RunSpec) -> tuple[dict[str, Any], dict[str, float]]:
    with quiet_run(spec.argv, "hf-lpwd sweep") as (run, args):
        peer = spec.settings.get("peer")
        run, optimizer = apply_peer(peer, run, args)
        pairing = {
            "initial_weights": _hash(_bytes(tensor) for tensor in run.model.state_dict().values()),
            "validation_rows": _hash([run.splits.rows["validation"].tobytes()]),
        }
        opposing = OpposingPenalty(layer_of_parameter(run))
        # R_op is that of plain decay, which these are not.
        callbacks: list[Any] = peer_callbacks(peer) or [opposing]
        tested = None
        if spec.settings.get("paper_metric") and "test" in run.images:
            tested = TestAfterEpoch(run.images["test"], args.per_device_eval_batch_size)
            callbacks.append(tested)
        trainer = quiet_trainer(run, args, callbacks, optimizer)
        durations = {"train_seconds": trainer.train().metrics["train_runtime"]}
        metrics = {
            role: _without(trainer.evaluate(run.images[role], metric_key_prefix=prefix), f"{prefix}_")
            for role, prefix in PREFIXES.items()
            if role in run.images
        }
    results = {
        "metrics": metrics,
        **_curves(trainer.state.log_history, tested),
        "layers": _layers(run),
        "opposing_penalty": {"steps": opposing.steps, "rates": opposing.rates},
        "pairing": pairing,
    }
    return results, durations


@contextmanager
def quiet_run(argv: Sequence[str], prog: str) -> Iterator[tuple[Run, ImageTrainingArguments]]:
    """Prepares a run of `hf-lpwd train` that prints nothing and whose folder does not stay.

    Args:
        argv: Flags of `hf-lpwd train`; those about its folder and output are overruled.
        prog: The program's name in errors.

    Yields:
        The run and its training arguments.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="hf-lpwd-") as folder, redirect_stdout(StringIO()):
        quiet = ["--output_dir", f"{folder}/run", "--disable_tqdm", "True", "--report_to", "none"]
        for name in ("do_train", "do_eval", "do_predict"):
            quiet += [f"--{name}", "True"]
        model_args, data_args, args = parse_args([*argv, *quiet], prog)
        yield prepare(model_args, data_args, args), args


def quiet_trainer(
    run: Run,
    args: ImageTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    optimizer: LayerwiseDecay | None = None,
) -> ImageTrainer:
    """Makes the trainer of a run, which writes no results and prints nothing."""
    trainer = make_trainer(run, args, callbacks, optimizer)
    for printer in (PrinterCallback, QuietPrinter):
        trainer.remove_callback(printer)
    return trainer


def layer_of_parameter(run: Run) -> dict[str, str]:
    """Parameter name -> what its layer is called in the Trainer's logs: ``"layer_3"``."""
    return {name: layer_name(p.stack, p.layer) for name, p in run.plan.parameters.items()}


def _curves(history: list[dict[str, Any]], tested: TestAfterEpoch | None) -> dict[str, Any]:
    # The last evaluation of the validation split is the one of the selected checkpoint, after training.
    trained = history[: next(i for i, entry in enumerate(history) if "train_runtime" in entry)]
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


def in_one_thread(spec: RunSpec) -> dict[str, Any]:
    """`compute_record` with one thread for torch, since runs are made side by side."""
    torch.set_num_threads(1)
    return compute_record(spec)
