"""`hf-lpwd train` as a script for `accelerate launch`; see the README."""

import sys

import torch.distributed

from hf_lpwd.cli import run_command

if __name__ == "__main__":
    code = run_command("train", sys.argv[1:], prog="run_image_classification.py")
    # Left to the interpreter, the threads of a process group now and then abort the process at its end.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)
