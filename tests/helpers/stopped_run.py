"""Run by test_interruptions.py in two processes: one of them gets a signal, both stop, and both resume."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from small_trainers import Signal, assert_same, trained
from small_trainers import make_checkpointing as make_trainer

from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.checkpoints.interruption import Interrupted, StopOnSignal

FLAGS = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 1}


def main(folder):
    whole = trained(make_trainer(folder / "whole", **FLAGS))
    rank = dist.get_rank()
    assert dist.get_world_size() == 2
    stop = StopOnSignal()
    trainer = make_trainer(folder / "run", [*([Signal(8, signal.SIGTERM)] if rank else []), stop], **FLAGS)
    checkpoint = folder / "run" / "checkpoint-8"
    with stop, pytest.raises(Interrupted) as end:
        trainer.train()
    assert (end.value.code, end.value.checkpoint) == (143, str(checkpoint))
    dist.barrier()
    assert why_corrupt(str(checkpoint)) is None
    dist.barrier()
    if rank == 0:
        (checkpoint / "rng_state_1.pth").unlink()
    dist.barrier()
    resumed = make_trainer(folder / "run", **FLAGS)
    assert_same(trained(resumed, resume_from_checkpoint=True), whole)
    assert resumed._initial_global_step == 5
    print("same", flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
