import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_with_fsdp2_and_ddp_train_and_resume_as_one():
    script = Path(__file__).with_name("sharded_run.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launcher, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("equal: ") == 14
