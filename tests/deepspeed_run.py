"""DeepSpeed ZeRO 1 to 3 in two processes on CPUs, against training in one process.

Then both scripts under ZeRO 1 and 2, against the same commands in one process.

Not collected by pytest, because DeepSpeed is no dependency of the tests: where it is installed, accelerate
imports it into every run. `make test-deepspeed` installs it beside the environment and runs this.

ZeRO flattens each parameter group and gives every process a part of it, in float32. `l2`, `wd` and `rwd`
around an elementwise optimizer (SGD, Adam's family, Adagrad, RMSprop) do not see the difference; Adafactor's
update depends on whole matrices and is another one there, with or without decay. `pwd` raises.
"""

import json
import logging
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import deepspeed
import pytest
import tiny_models
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from hf_lpwd.factory import create_lpwd_optimizer

SETTINGS = [("l2", "lr")] + [(t, c) for t in ("wd", "rwd") for c in ("lr", "independent")]
BATCHES = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(0))


def build(optimizer_cls, timing, coupling="lr", seed=0):
    torch.manual_seed(seed)
    model = tiny_models.HandWritten()
    return model, create_lpwd_optimizer(
        model, optimizer_cls, lr=0.05, weight_decay=0.4, timing=timing, coupling=coupling
    )


def initialize(model, optimizer, stage):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def train(engine, steps):
    part = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    for step in steps:
        engine.backward(engine(BATCHES[step, part]).square().mean())
        engine.step()


def weights(model):
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return [p.detach().clone() for p in model.parameters()]


def check(stage, optimizer_cls, timing, coupling, folder):
    whole, optimizer = build(optimizer_cls, timing, coupling)
    for batch in BATCHES:
        optimizer.zero_grad()
        whole(batch).square().mean().backward()
        optimizer.step()
    model, optimizer = build(optimizer_cls, timing, coupling)
    engine = initialize(model, optimizer, stage)
    train(engine, range(3))
    engine.save_checkpoint(folder, tag="middle")
    train(engine, range(3, 6))
    final = weights(model)
    for expected, found in zip(whole.parameters(), final, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)

    other, optimizer = build(optimizer_cls, timing, coupling, seed=1)
    resumed = initialize(other, optimizer, stage)
    resumed.load_checkpoint(folder, tag="middle")
    train(resumed, range(3, 6))
    for expected, found in zip(final, weights(other), strict=True):
        assert torch.equal(found, expected)
    return max((a - b).abs().max().item() for a, b in zip(whole.parameters(), final, strict=True))


def check_that_pwd_raises(stage):
    model, optimizer = build(torch.optim.AdamW, "pwd")
    engine = initialize(model, optimizer, stage)
    with pytest.raises(RuntimeError, match="DeepSpeed uses its own copy of them there: use 'rwd'"):
        optimizer.train()
    with pytest.raises(RuntimeError, match="use timing 'rwd', which needs no call"):
        train(engine, range(1))


SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMON = "--max_train_samples 160 --max_eval_samples 53 --num_train_epochs 2 --weight_decay 0.5"
FLAGS = {
    "run_image_classification.py": "--warmup_steps 2 --save_strategy epoch --report_to none --disable_tqdm 1",
    "run_image_classification_no_trainer.py": "--num_warmup_steps 2 --checkpointing_steps epoch",
}


def flags_of(script, timing, folder, batch_size):
    batch = ["--per_device_train_batch_size", str(batch_size), "--output_dir", str(folder)]
    return [*COMMON.split(), *FLAGS[script].split(), "--decay_timing", timing, *batch]


def in_one_process(script, timing, folder):
    """Runs a script without DeepSpeed."""
    left_out = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "PYTHONPATH",
        "DS_ACCELERATOR",
        "ACCELERATE_USE_DEEPSPEED",
    )
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    subprocess.run(
        [sys.executable, str(SCRIPTS / script), *flags_of(script, timing, folder, 16)],
        check=True,
        capture_output=True,
        env=environment | {"ACCELERATE_USE_CPU": "true"},
    )


def under_zero(script, timing, folder, stage):
    """Runs a script in this process, and the other one, under DeepSpeed; returns its exit code."""
    # On CPUs accelerate finds no backend for DeepSpeed and goes on in one process; here it finds gloo in use.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    assert PartialState(cpu=True).num_processes == 2
    config = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    config |= {
        # The Trainer clips at 1, the loop does not.
        "gradient_clipping": "auto" if script == "run_image_classification.py" else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    path = Path(f"{folder}-{dist.get_rank()}.json")
    path.write_text(json.dumps(config))
    argv = flags_of(script, timing, folder, 8)
    if script == "run_image_classification.py":
        argv += ["--deepspeed", str(path)]
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    sys.argv = [script, *argv]
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE"):
            os.environ.pop(name, None)
    return 0


def check_script(script, folder):
    for timing in ("wd", "rwd"):
        alone = folder / f"{script}-{timing}"
        if dist.get_rank() == 0:
            in_one_process(script, timing, alone)
        dist.barrier()
        expected = load_file(alone / "model.safetensors")
        for stage in (1, 2):
            shared = folder / f"{script}-{timing}-{stage}"
            assert under_zero(script, timing, shared, stage) == 0
            dist.barrier()
            found = load_file(shared / "model.safetensors")
            assert found.keys() == expected.keys()
            # The gradients of these are 0 but for rounding, which Adam scales up.
            names = [name for name in expected if not name.endswith("key.bias")]
            difference = max((found[name] - expected[name]).abs().max().item() for name in names)
            assert difference < 3e-6
            if dist.get_rank() == 0:
                print(f"ZeRO {stage} {script} {timing}: {difference:.1e}", flush=True)
    assert under_zero(script, "pwd", folder / f"{script}-pwd", 2) == 2


def main():
    # What ends a run of a script would end the process group of all.
    dist.destroy_process_group = lambda *_: None
    PartialState._reset_state = staticmethod(lambda: None)
    logging.disable(logging.WARNING)
    deepspeed.init_distributed("gloo", verbose=False)
    assert dist.get_world_size() == 2
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    for stage in (1, 2, 3):
        for timing, coupling in SETTINGS:
            for optimizer_cls in (torch.optim.AdamW, torch.optim.SGD):
                difference = check(stage, optimizer_cls, timing, coupling, folder[0])
                if dist.get_rank() == 0:
                    name = optimizer_cls.__name__
                    print(f"ZeRO {stage} {name} {timing} {coupling}: {difference:.1e}", flush=True)
        check_that_pwd_raises(stage)
    for script in FLAGS:
        check_script(script, Path(folder[0]))
    print("done", flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
