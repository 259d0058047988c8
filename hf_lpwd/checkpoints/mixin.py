"""Checkpoints of a `Trainer` that are whole or not there, however a run ends."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints
from transformers.utils import logging

from hf_lpwd.checkpoints.corruption import damage
from hf_lpwd.files import FILE_SIZES, write_json
from hf_lpwd.messages import BadInputError

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

#: Folder in which a checkpoint is written before it gets its name; a killed run can leave it behind.
UNFINISHED = ".unfinished"
#: Folder in it for a checkpoint that is being replaced by another one of the same step.
_REPLACED = "replaced"
#: What a checkpoint is called while it is removed; a killed run can leave it behind.
OUTDATED = ".outdated"

logger = logging.get_logger(__name__)


class CompleteCheckpointsMixin(_Base):
    """Saves each checkpoint under another name and renames it when it is whole; resumes only from whole ones.

    `Trainer` alone writes into ``checkpoint-N`` file by file, so that a run killed meanwhile leaves a folder
    from which it cannot go on.
    """

    #: While a checkpoint is written, the folder in which it is.
    _unfinished: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as `Trainer.train` does.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for `last_complete_checkpoint`.
            *args: For `Trainer.train`, as are `kwargs`.
            **kwargs: See `args`.

        Raises:
            ValueError: There is no whole checkpoint, or the named one is not whole; a `BadInputError` then
                says what is wrong with it and which one is whole.
        """
        named = isinstance(resume_from_checkpoint, (str, os.PathLike)) and os.fspath(resume_from_checkpoint)
        if self.is_local_process_zero():
            put_back_replaced(str(self.args.output_dir))
            for left_behind in (UNFINISHED, OUTDATED):
                shutil.rmtree(os.path.join(str(self.args.output_dir), left_behind), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_complete_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint is True, but {self.args.output_dir} has no whole checkpoint"
                )
        elif named:
            reason = why_not_resumable(named) if self.is_world_process_zero() else None
            reason = broadcast_object_list([reason])[0]
            if reason is not None:
                raise BadInputError(reason)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def last_complete_checkpoint(self) -> str | None:
        """Returns the newest whole checkpoint in `output_dir`, agreed on by all processes, or None."""
        found = last_complete(str(self.args.output_dir)) if self.is_world_process_zero() else None
        return broadcast_object_list([found])[0]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed from its last checkpoint amid an epoch, Trainer would take one step more than max_steps.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return self._unfinished or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Uploads run on in the background, and have to find the checkpoint at its own place.
        if self._unfinished is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        unfinished = run_dir / UNFINISHED
        checkpoint = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.is_local_process_zero():
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._unfinished = str(unfinished)
            super()._save_checkpoint(model, trial)
            if self.state.best_global_step:
                best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                if best == checkpoint or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / checkpoint.name / TRAINER_STATE_NAME))
            # The second turn is for machines that do not share the first one's disk.
            for my_turn in (self.args.should_save, self.is_local_process_zero()):
                if my_turn and (unfinished / checkpoint.name).is_dir():
                    finish(unfinished / checkpoint.name, checkpoint)
                self.accelerator.wait_for_everyone()
        except BaseException:
            if self.is_local_process_zero():
                put_back_replaced(str(run_dir))
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        finally:
            self._unfinished = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            remove_oldest(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)


def finish(written: Path, checkpoint: Path) -> None:
    """Records the files of a checkpoint, brings them to the disk, and renames their folder.

    Args:
        written: ``UNFINISHED/checkpoint-N``; the folder around it is removed.
        checkpoint: The name to give it; what has that name already is replaced.
    """
    files = sorted(path for path in written.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sizes = {path.relative_to(written).as_posix(): path.stat().st_size for path in files}
    write_json(written / FILE_SIZES, sizes)
    if checkpoint.exists():
        replaced = written.parent / _REPLACED
        replaced.mkdir()
        checkpoint.rename(replaced / checkpoint.name)
    written.rename(checkpoint)
    shutil.rmtree(written.parent, ignore_errors=True)


def remove_oldest(run_dir: Path, limit: int | None, best: str | None) -> None:
    """Removes checkpoints as `Trainer` does, but under another name: a kill leaves none that is half there.

    Args:
        run_dir: The folder of the run.
        limit: How many stay; None or 0 for all. The newest and the best always do.
        best: The best checkpoint, if any.
    """
    if not limit or limit < 0:
        return
    outdated = run_dir / OUTDATED
    shutil.rmtree(outdated, ignore_errors=True)
    checkpoints = sort_checkpoints(str(run_dir), use_mtime=True, best_model_checkpoint=best)
    if len(checkpoints) <= limit:
        return
    stay = max(limit, len({checkpoints[-1], best or checkpoints[-1]}))
    for checkpoint in checkpoints[:-stay]:
        os.rename(checkpoint, outdated)
        shutil.rmtree(outdated, ignore_errors=True)


def put_back_replaced(output_dir: str) -> None:
    """Gives a whole checkpoint its name back that was about to be replaced when the run was killed."""
    for replaced in Path(output_dir, UNFINISHED, _REPLACED).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        checkpoint = Path(output_dir, replaced.name)
        if not checkpoint.exists() and damage(str(replaced)) is None:
            # Another process may have been faster.
            with contextlib.suppress(FileNotFoundError):
                replaced.rename(checkpoint)


def last_complete(output_dir: str) -> str | None:
    """Returns the newest whole checkpoint in a folder, or None.

    A damaged one is moved out of the way, to ``damaged-checkpoint-N``; a warning says what is wrong with it.
    """
    put_back_replaced(output_dir)
    while os.path.isdir(output_dir) and (checkpoint := get_last_checkpoint(output_dir)) is not None:
        fault = damage(checkpoint)
        if fault is None:
            return checkpoint
        aside = os.path.join(output_dir, f"damaged-{os.path.basename(checkpoint)}")
        logger.warning(f"passed over the damaged checkpoint {checkpoint}: {fault}; it is now {aside}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(checkpoint, aside)
    return None


def why_not_resumable(checkpoint: str) -> str | None:
    """Says why a run cannot go on from a folder, and from which it could; None if it can.

    A checkpoint that was about to be replaced when its run was killed first gets its name back.
    """
    run_dir = os.path.dirname(os.path.abspath(checkpoint))
    put_back_replaced(run_dir)
    fault = damage(checkpoint) if os.path.isdir(checkpoint) else "no checkpoint is there"
    if fault is None:
        return None
    # It may also be the folder of a run that was named.
    others = [*reversed(sort_checkpoints(checkpoint)), *reversed(sort_checkpoints(run_dir))]
    whole = next((other for other in others if damage(other) is None), None)
    advice = "no whole one is beside it" if whole is None else f"the newest whole one is {whole}"
    return f"resume_from_checkpoint is {checkpoint!r}, but {fault}; {advice}"
