"""accelerate's shipped test scripts, with `LayerwiseDecay` in the place of their optimizer.

Of `accelerate.test_utils.scripts` these make an optimizer and run on a CPU without the Hub, and are run
here: test_script (its training check: one process against several, with and without split batches, in bf16
and fp16), test_sync (gradient accumulation with optimizer and scheduler), external_deps.test_checkpointing
(the state saved and loaded) and external_deps.test_performance (the learning rates of a scheduler), the last
two on a tiny BERT.

The others cannot take one: test_cli, test_distributed_data_loop, test_notebook, test_ops,
test_ddp_comm_hook, external_deps.test_metrics, test_pippy and test_zero3_integration make no optimizer;
test_merge_weights shards by FSDP1 over two accelerators; test_peak_memory_usage measures a GPU's memory;
test_ds_multiple_model and test_ds_alst_ulysses_sp need DeepSpeed on GPUs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import accelerate.test_utils.scripts
import pytest
from processes import HELPERS

TIMINGS = ("l2", "wd", "rwd", "pwd")
_RUN = HELPERS / "accelerate_run.py"
_USED = {"test_script", "test_sync", "external_deps/test_checkpointing", "external_deps/test_performance"}
_WITHOUT_OPTIMIZER = {
    "test_cli",
    "test_ddp_comm_hook",
    "test_distributed_data_loop",
    "test_notebook",
    "test_ops",
    "external_deps/test_metrics",
    "external_deps/test_pippy",
    "external_deps/test_zero3_integration",
}
_ON_GPUS_ONLY = {
    "test_merge_weights",
    "external_deps/test_ds_alst_ulysses_sp",
    "external_deps/test_ds_multiple_model",
    "external_deps/test_peak_memory_usage",
}


def _run(script, timing, processes, directory=None):
    """The report of accelerate_run.py."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(_RUN), script, timing, *([str(directory)] if directory else [])]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = re.findall(r"^RESULT (.*)$", result.stdout, re.MULTILINE)
    report = json.loads(line)
    assert report["world_size"] == processes
    assert report["decays"] == (report["steps"] if timing == "pwd" else 0)
    return report


def _slow_unless(fast, *values):
    return pytest.param(*values, marks=() if values in fast else pytest.mark.slow)


@pytest.mark.parametrize(
    ("timing", "processes"),
    [_slow_unless([("pwd", 1), ("rwd", 1)], timing, n) for timing in TIMINGS for n in (1, 2)],
)
def test_training_check(timing, processes):
    """Twice with a reference and three to five ways to train as it does, each of 12 steps."""
    report = _run("test_script", timing, processes)
    assert report["steps"] == 12 * report["optimizers"]
    assert report["optimizers"] in (7, 9, 11)
    # Weights of 2 and 3 are pulled towards 0 by a decay of 0.1.
    assert all(0.9 < shrunk < 0.99 for shrunk in report["shrunk"])
    assert ("refused" in report) is (timing == "pwd")
    if timing == "pwd":
        assert "optimizer.train() was not called since the last step" in report["refused"]


@pytest.mark.parametrize(
    ("timing", "processes"),
    [_slow_unless([("pwd", 1)], timing, n) for timing in TIMINGS for n in (1, 2)],
)
def test_gradient_accumulation(timing, processes):
    """80 samples in batches of 16 for each process; one model steps each time, the other every second."""
    report = _run("test_sync", timing, processes)
    batches = 5 if processes == 1 else 3
    assert report["optimizers"] == 2
    assert report["steps"] == batches + (batches + 1) // 2


@pytest.mark.parametrize(
    ("timing", "processes"),
    [_slow_unless([("pwd", 1)], timing, n) for timing in TIMINGS for n in (1, 2)],
)
def test_checkpointing(timing, processes, tmp_path):
    """Two epochs of 40 samples in batches of 4 for each process; then the first epoch's state is loaded."""
    report = _run("test_checkpointing", timing, processes, tmp_path)
    assert (report["optimizers"], report["steps"]) == (2, 20 // processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("timing", TIMINGS)
def test_learning_rates_of_a_scheduler(timing, processes, tmp_path):
    report = _run("test_performance", timing, processes, tmp_path)
    assert (report["optimizers"], report["steps"]) == (1, 30 // processes)


def test_every_script_is_run_or_has_a_reason():
    root = Path(accelerate.test_utils.scripts.__file__).parent
    scripts = {
        str(path.relative_to(root).with_suffix("")): path.read_text() for path in root.rglob("test_*.py")
    }
    assert scripts.keys() == _USED | _WITHOUT_OPTIMIZER | _ON_GPUS_ONLY
    makes_one = re.compile(r"\b(?:AdamW|Adam|SGD)\b")
    assert {name for name, text in scripts.items() if makes_one.search(text.replace("POWER_SGD", ""))} == (
        _USED | _ON_GPUS_ONLY
    )
