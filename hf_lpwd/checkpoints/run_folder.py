"""Which run a folder or checkpoint belongs to, and whether another run may write there or resume from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from hf_lpwd.checkpoints.folders import UNFINISHED, checkpoints_in, why_not_resumable
from hf_lpwd.checkpoints.run_record import (
    CHANGES,
    DIVISION,
    IMAGES,
    LENGTH,
    Differences,
    differences,
    read_record,
    samples_per_step,
    say_differences,
)
from hf_lpwd.config import SETTINGS
from hf_lpwd.files import RECORD
from hf_lpwd.messages import BadInputError

#: In the folder of a run that is under way; a killed run can leave it behind, unlocked.
LOCK = ".lock"
# What a checkpoint's weights and its optimizer's state decide, whatever the flags say.
_IN_THE_STATE = {
    *("model_type", "config_name", "config_overrides", "class_names"),
    *("learning_rate", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *SETTINGS,
    "processes",
}

logger = logging.get_logger(__name__)


def check_run(
    output_dir: str,
    settings: Mapping[str, Any],
    checkpoint: str | os.PathLike[str] | None = None,
    with_changes: bool = False,
) -> str | None:
    """Raises a BadInputError if a run cannot write into its folder, or not go on from a checkpoint.

    Takes the arguments of `check_output_dir` and `check_checkpoint`, and returns the result of the latter;
    None if no checkpoint is named.
    """
    check_output_dir(output_dir, settings)
    return None if checkpoint is None else check_checkpoint(checkpoint, settings, with_changes)


def check_output_dir(output_dir: str, settings: Mapping[str, Any]) -> None:
    """Raises a BadInputError if `output_dir` cannot be written into, or holds something else than this run.

    A folder without a checkpoint and without a model is free, so that a mistake noticed late does not lock
    it. A run may go on with another number of devices if its steps see as many samples as before; a warning
    says what is different.

    `settings` identify the run; those that are not known yet may be left out.
    """
    _check_writable(output_dir)
    folder = Path(output_dir)
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    weights = (
        *checkpoints_in(folder),
        *folder.glob("*.safetensors"),
        *folder.glob(f"{UNFINISHED}/*/checkpoint-*"),
    )
    if (folder / RECORD).exists() and not weights:
        return
    then = read_record(folder)
    if then is None:
        raise BadInputError(f"output_dir {folder} is not empty and holds no run of hf-lpwd: name another one")
    found = _differences_of_a_run(then, settings, str(folder))
    if found:
        first, why = next(iter(found)), ""
        if first in LENGTH:
            why = "only a constant learning rate can go on for longer, with --resume_from_checkpoint True; "
        elif first in DIVISION:
            samples = [samples_per_step(values) for values in (then, {**then, **settings})]
            why = f"a step has {samples[1]} samples instead of {samples[0]}, go on with as many, or "
        raise BadInputError(
            f"output_dir {folder} holds another run: {say_differences(found)}: {why}name another folder"
        )


def _check_writable(output_dir: str) -> None:
    if not output_dir:
        raise BadInputError("output_dir is empty: name a folder for the results")
    if os.path.exists(output_dir) and not os.path.isdir(output_dir):
        raise BadInputError(f"output_dir {output_dir} is a file: name a folder")
    folder = Path(output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInputError(f"output_dir is {output_dir}, but there is no write permission in {there}")


def check_checkpoint(
    checkpoint: str | os.PathLike[str], settings: Mapping[str, Any], with_changes: bool = False
) -> str | None:
    """Raises a BadInputError if the run of these settings cannot go on from a checkpoint.

    Args:
        checkpoint: Its folder.
        settings: See `check_output_dir`.
        with_changes: Whether it may be of a run with other settings. Those that are part of the model or of
            the optimizer's state cannot be changed.

    Returns:
        What is different, or was in the run of the checkpoint itself; None if nothing.
    """
    if (reason := why_not_resumable(checkpoint)) is not None:
        raise BadInputError(reason)
    folder = Path(checkpoint)
    then = read_record(folder) or read_record(folder.absolute().parent)
    if then is None:
        logger.warning_once(f"{checkpoint} does not say which run it is of: its settings are not compared")
        return None
    found = _differences_of_a_run(then, settings, str(checkpoint))
    if not found:
        return then.get(CHANGES)
    fixed = {name: found[name] for name in found if name in _IN_THE_STATE}
    refused = f"resume_from_checkpoint is {str(checkpoint)!r}, a checkpoint of another run: "
    if fixed:
        raise BadInputError(
            f"{refused}{say_differences({**fixed, **found})}: its state decides {', '.join(fixed)}; to start "
            f"a new run from its weights, use --model_name_or_path {checkpoint}"
        )
    if not with_changes:
        raise BadInputError(
            f"{refused}{say_differences(found)}; to go on all the same: --resume_with_changes"
        )
    changes = f"{folder.absolute().name}: {say_differences(found, most=len(found))}"
    logger.warning_once(f"going on from another run's {changes}")
    return changes


def _differences_of_a_run(then: Mapping[str, Any], now: Mapping[str, Any], where: str) -> Differences:
    """Returns what is different; not how a step's samples are divided, of which a warning tells."""
    names = [name for name in now if name != CHANGES and (name != IMAGES or name in then)]
    found = differences(then, now, names)
    division = {name: found[name] for name in DIVISION if name in found}
    samples = samples_per_step(then)
    if division and samples is not None and samples == samples_per_step({**then, **now}):
        found = {name: found[name] for name in found if name not in division}
        said = ", ".join(f"{name} {old}, now {new}" for name, (old, new) in division.items())
        logger.warning_once(
            f"{where}: the run had {said}. Each step has {samples} samples as before, but the result is the "
            "same only up to rounding and random numbers"
        )
    return found


@contextmanager
def sole_use(output_dir: str) -> Iterator[None]:
    """Keeps every other run out of a folder; one that it made and that stays empty is removed again.

    Raises:
        BadInputError: Another run is in it, or nothing can be written there.
    """
    _check_writable(output_dir)
    folder = Path(output_dir)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInputError(
            f"output_dir {output_dir} is in use by another run: wait for its end, or name another folder"
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):
                folder.rmdir()
