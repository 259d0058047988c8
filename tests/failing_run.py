"""Run by test_launch.py in two processes: the Trainer's script, where something fails in one of them.

argv: `picture` (one of those that are read while training is damaged), `disk` (the second checkpoint cannot
be written) or `memory`; the process in which the disk is full or memory runs out; and the flags.
"""

import os
import resource
import runpy
import sys
from pathlib import Path

import torch

from hf_lpwd.trainer import LPWDTrainer
from hf_lpwd.vision import images
from hf_lpwd.vision.image_trainer import ImageTrainer

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_image_classification.py"


def fill_disk(trainer):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def take_memory(trainer):
    torch.empty(10**14)


def second_time(cls, name, then):
    """Does something before the second call of a method."""
    original, calls = getattr(cls, name), iter([None])

    def call(self, *args, **kwargs):
        if next(calls, self) is self:
            then(self)
        return original(self, *args, **kwargs)

    setattr(cls, name, call)


def main(what, process, flags):
    if what == "picture":
        images._fits_in_memory = lambda *_: False
    elif os.environ["RANK"] == process:
        name, then = {
            "disk": ("_save_checkpoint", fill_disk),
            "memory": ("training_step", take_memory),
        }[what]
        second_time(LPWDTrainer if what == "disk" else ImageTrainer, name, then)
    sys.argv = [SCRIPT.name, *flags]
    runpy.run_path(str(SCRIPT), run_name="__main__")


main(sys.argv[1], sys.argv[2], sys.argv[3:])
