"""Runs a script of this folder in two gloo processes."""

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent


def in_two_processes(script, *arguments):
    """Returns what the processes printed, once both have ended well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launcher, str(HELPERS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
