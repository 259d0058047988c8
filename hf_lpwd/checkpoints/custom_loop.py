"""Checkpoints of a custom training loop with accelerate: complete or absent, and never unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hf_lpwd.checkpoints import folders
from hf_lpwd.files import write_json
from hf_lpwd.messages import BadInputError

_PROGRESS = "progress.json"


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike[str],
    step: int,
    last_step: int,
    losses: torch.Tensor,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: Mapping[str, Any],
) -> None:
    """Saves all that a resumed run needs in ``output_dir/checkpoint-STEP``; every process calls it.

    `accelerator.save_state` alone writes into the checkpoint file by file, and unpickles what is registered
    for checkpointing; the scheduler should not be.

    Args:
        accelerator: It has prepared model and optimizer.
        output_dir: The folder of the run.
        step: How many steps are done.
        last_step: How many there will be.
        losses: What each process has added up so far, any shape.
        scheduler: Of the learning rate; its state must be numbers, which torch's are.
        settings: What identifies the run.
    """
    checkpoint = folders.checkpoint_of(output_dir, step)
    unfinished = Path(output_dir, folders.UNFINISHED, checkpoint.name)
    accelerator.save_state(str(unfinished))
    progress = {"step": step, "last_step": last_step, "losses": accelerator.reduce(losses).tolist()}
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(unfinished / _PROGRESS, {**progress, "scheduler": scheduler.state_dict()})
        folders.finish(unfinished, checkpoint, settings)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: str | os.PathLike[str],
    last_step: int,
    losses: torch.Tensor,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Takes up a checkpoint of `save_checkpoint` that `hf_lpwd.checkpoints.run_folder.check_run` accepts.

    Takes the arguments of `save_checkpoint`, and fills `losses` and `scheduler`.

    Returns:
        How many steps are done.

    Raises:
        BadInputError: It does not fit, or there would be nothing left to train.
    """
    refused = f"resume_from_checkpoint is {os.fspath(checkpoint)!r}, but"
    try:
        progress = json.loads(Path(checkpoint, _PROGRESS).read_text(encoding="utf-8"))
        if progress["step"] >= last_step != progress["last_step"]:
            raise BadInputError(
                f"{refused} that is step {progress['step']} of {progress['last_step']}, and this run ends at "
                f"step {last_step}: there is nothing left to train"
            )
        accelerator.load_state(os.fspath(checkpoint))
        scheduler.load_state_dict(progress["scheduler"])
        losses.zero_()
        if accelerator.is_main_process:
            losses += torch.tensor(progress["losses"], device=losses.device)
    except (RuntimeError, FileNotFoundError, KeyError) as error:
        raise BadInputError(f"{refused} it does not fit: {' '.join(str(error).split())}") from None
    return progress["step"]
