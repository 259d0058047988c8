"""Run by test_launch.py in two processes: the Trainer's script, where something fails in one of them.

argv: `image` (one of those that are read while training is damaged), `disk` (the second checkpoint cannot
be written) or `memory`; the process in which the disk is full or memory runs out; and the flags.
"""

import os
import resource
import runpy
import sys
from pathlib import Path

import pytest
import torch
from small_runs import at_call

from hf_lpwd.vision.data import images
from hf_lpwd.vision.image_trainer import ImageTrainer

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_image_classification.py"


def fill_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def take_memory():
    torch.empty(10**14)


def main(what, process, flags):
    patch = pytest.MonkeyPatch()
    if what == "image":
        patch.setattr(images, "fits_in_memory", lambda *_: False)
    elif os.environ["RANK"] == process:
        cls, name, then = {
            "disk": (ImageTrainer, "_save_checkpoint", fill_disk),
            "memory": (ImageTrainer, "training_step", take_memory),
        }[what]
        patch.setattr(cls, name, at_call(2, then, getattr(cls, name)))
    sys.argv = [SCRIPT.name, *flags]
    runpy.run_path(str(SCRIPT), run_name="__main__")


main(sys.argv[1], sys.argv[2], sys.argv[3:])
