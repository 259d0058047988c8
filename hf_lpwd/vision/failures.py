"""How training ends where memory, disk or numbers give out: in one line that says what to do."""

from __future__ import annotations

import errno
import math
import re
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState

from hf_lpwd.messages import BadInputError

#: The types of the errors that `failure_line` knows some of.
MACHINE_ERRORS = (RuntimeError, MemoryError, OSError, SafetensorError, ValueError)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors say so in their own words.
_NOT_WRITTEN = re.compile(
    r"inline_container\.cc.*(unexpected pos|file write failed)|iostream error"
    rf"|\(os error ({'|'.join(map(str, _FULL))})\)|No space left on device"
)
_WORKER_ENDED = re.compile("DataLoader worker .* killed by signal|unable to write to file </torch_")
_ONE_IMAGE = "Expected more than 1 value per channel when training"
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
_GO_ON = "the same command with --resume_from_checkpoint True goes on from the last complete checkpoint"


def failure_line(error: Exception) -> str | None:
    """Says in one line what the machine lacks, and what to do; None if it lacks nothing."""
    text = " ".join(str(error).split())
    # torch's last error only says "exited unexpectedly", which may be a bug.
    if _WORKER_ENDED.search(f"{text} {error.__cause__}"):
        return (
            "a process that loads images ended, most likely for want of memory or shared memory: use fewer "
            f"--dataloader_num_workers; {_GO_ON}"
        )
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error):
        tried = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
        wanted = f" (tried to allocate {tried[1]})" if tried else ""
        return (
            f"out of memory{wanted}: divide --per_device_train_batch_size and multiply "
            "--gradient_accumulation_steps by the same number, which leaves each step its samples, or lower "
            "--per_device_eval_batch_size if it evaluated; with --resume_from_checkpoint True the run then "
            "goes on from its last complete checkpoint"
        )
    if _ONE_IMAGE in text:
        return (
            "the last batch of an epoch has one image, which the model's BatchNorm cannot normalise: leave "
            "it out with --dataloader_drop_last, or take another --per_device_train_batch_size"
        )
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or _NOT_WRITTEN.search(text):
        return f"a file could not be written, the disk may be full ({text}): free some space; {_GO_ON}"
    if number in _NO_RIGHT:
        return f"{text}: ask for the right to it, or name another folder"
    return None


#: What to do about weights or losses that are NaN or infinite.
DIVERGED = (
    "training diverged; start again with a lower --learning_rate, more warmup steps, and rather in bf16 than "
    "in fp16"
)


class StopWhereNotFinite(TrainerCallback):
    """Stops training when weights or losses become NaN or infinite: from there nothing can be learned.

    `Trainer` alone leaves such losses out of its logs and goes on to the end.
    """

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Raises a `BadInputError` if what is logged shows it."""
        for name, value in (logs or {}).items():
            told = name.startswith("weight_norm/") or name in ("eval_loss", "test_loss")
            if told and not math.isfinite(value):
                raise BadInputError(
                    f"{name} is {value} at step {state.global_step} with --learning_rate "
                    f"{args.learning_rate:g}: {DIVERGED}"
                )
