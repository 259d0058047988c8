"""The checkpoints in the folder of a run: written complete or not at all, found, replaced and removed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_lpwd.checkpoints.corruption import as_saved, why_corrupt
from hf_lpwd.checkpoints.run_record import CHANGES, DIVISION, LENGTH, differences, read_record, write_record
from hf_lpwd.files import SAVED_FILES, remove_leftovers, set_mode, write_json

#: Folder in which a checkpoint is written before it gets its name; a killed run can leave it behind.
UNFINISHED = ".unfinished"
#: Folder in it for a checkpoint that is being replaced by another one of the same step.
_REPLACED = "replaced"
#: What a checkpoint is called while it is removed; a killed run can leave it behind.
OUTDATED = ".outdated"

logger = logging.get_logger(__name__)


def checkpoint_of(run_dir: str | os.PathLike[str], step: int) -> Path:
    """Returns the folder of the checkpoint of a step, there or not."""
    return Path(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def checkpoints_in(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the checkpoints in a folder by their steps: times say nothing where clocks go back."""
    found = [path for path in Path(run_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    steps = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in found}
    return sorted((path for path in found if steps[path].isdecimal()), key=lambda path: int(steps[path]))


def finish(written: Path, checkpoint: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Records settings and files of the checkpoint in ``UNFINISHED/checkpoint-N``, and gives it its name.

    All is on the disk by then. What has the name already is replaced.
    """
    if settings is not None:
        write_record(written, settings)
    files = sorted(path for path in written.rglob("*") if path.is_file())
    for path in files:
        set_mode(path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    saved = {path.relative_to(written).as_posix(): as_saved(path) for path in files}
    write_json(written / SAVED_FILES, saved)
    if checkpoint.exists():
        replaced = written.parent / _REPLACED
        replaced.mkdir()
        checkpoint.rename(replaced / checkpoint.name)
    written.rename(checkpoint)
    shutil.rmtree(written.parent, ignore_errors=True)


def move_files(written: Path, folder: Path) -> None:
    """Moves what was saved into a folder, the weights last, and removes `written`."""
    for file in filter(Path.is_file, written.rglob("*")):
        set_mode(file)
    for path in sorted(written.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        os.replace(path, folder / path.name)
    shutil.rmtree(written)


@contextlib.contextmanager
def written_aside(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a folder to save a model in, whose files are moved into `folder` once all are there."""
    written = Path(folder, UNFINISHED)
    shutil.rmtree(written, ignore_errors=True)
    yield written
    move_files(written, Path(folder))


def remove_oldest(run_dir: Path, limit: int | None, newest: Path, best: Path | None = None) -> None:
    """Removes all but `limit` checkpoints of the run that has just saved `newest`; 0 or None keeps all.

    The newest and the best stay. Each gets another name first, so that a kill leaves none that is half there.
    Checkpoints of later steps, of other runs, and folders that only have a similar name are not touched.
    """
    if not limit or limit < 0:
        return
    outdated = run_dir / OUTDATED
    shutil.rmtree(outdated, ignore_errors=True)
    settings, here = read_record(newest), checkpoints_in(run_dir)
    older = [path for path in here[: here.index(newest)] if path != best and _is_of_run(path, settings)]
    kept = max(0, limit - 1 - (best is not None and best != newest))
    for checkpoint in older[: max(0, len(older) - kept)]:
        checkpoint.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)


def _is_of_run(checkpoint: Path, settings: Mapping[str, Any] | None) -> bool:
    try:
        then = read_record(checkpoint)
    except ValueError:
        return False
    # A run may be made longer, and go on on other devices.
    changed = differences(then or {}, settings or {}).keys() - {*LENGTH, *DIVISION, CHANGES}
    return (checkpoint / SAVED_FILES).exists() and not changed


def put_back_replaced(run_dir: str | os.PathLike[str]) -> None:
    """Gives a complete checkpoint its name back that was about to be replaced when the run was killed."""
    for replaced in Path(run_dir, UNFINISHED, _REPLACED).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        checkpoint = Path(run_dir, replaced.name)
        if not checkpoint.exists() and why_corrupt(replaced) is None:
            # Another process may have been faster.
            with contextlib.suppress(FileNotFoundError):
                replaced.rename(checkpoint)


def remove_unfinished(run_dir: str | os.PathLike[str]) -> None:
    """Removes what a killed run left behind, and puts back what it was about to replace."""
    put_back_replaced(run_dir)
    for left_behind in (UNFINISHED, OUTDATED):
        shutil.rmtree(Path(run_dir, left_behind), ignore_errors=True)
    remove_leftovers(Path(run_dir))


def last_complete(run_dir: str | os.PathLike[str]) -> str | None:
    """Returns the complete checkpoint of the highest step in a folder, or None.

    A corrupt one is moved out of the way, to ``damaged-checkpoint-N``; a warning says what is wrong with it.
    """
    put_back_replaced(run_dir)
    for checkpoint in reversed(checkpoints_in(run_dir)):
        fault = why_corrupt(checkpoint)
        if fault is None:
            return str(checkpoint)
        aside, number = Path(run_dir, f"damaged-{checkpoint.name}"), 1
        while aside.exists():
            number += 1
            aside = Path(run_dir, f"damaged-{checkpoint.name}-{number}")
        logger.warning(f"passed over the corrupt checkpoint {checkpoint}: {fault}; it is now {aside}")
        checkpoint.rename(aside)
    return None


def has_optimizer(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint holds more than a model: files or folders of torch, accelerate or DeepSpeed."""
    return any(True for name in ("optimizer*", "global_step*") for _ in Path(checkpoint).glob(name))


def why_not_resumable(checkpoint: str | os.PathLike[str]) -> str | None:
    """Says why a run cannot go on from a folder, and from which it could; None if it can.

    A checkpoint that was about to be replaced when its run was killed first gets its name back.
    """
    run_dir = Path(os.path.abspath(checkpoint)).parent
    put_back_replaced(run_dir)
    fault = why_corrupt(checkpoint) if os.path.isdir(checkpoint) else "no checkpoint is there"
    if fault is None:
        return None
    # It may also be the folder of a run that was named.
    others = [*reversed(checkpoints_in(checkpoint)), *reversed(checkpoints_in(run_dir))]
    complete = next((other for other in others if why_corrupt(other) is None), None)
    advice = (
        "its folder has no complete one" if complete is None else f"the newest complete one is {complete}"
    )
    return f"resume_from_checkpoint is {os.fspath(checkpoint)!r}, but {fault}; {advice}"
