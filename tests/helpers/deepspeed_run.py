"""DeepSpeed ZeRO 1 to 3 in two processes on CPUs, against training in one process.

Then both scripts under ZeRO 1 to 3, against the same commands in one process.

Not collected by pytest, because DeepSpeed is no dependency of the tests: where it is installed, accelerate
imports it into every run. `make test-deepspeed` installs it beside the environment and runs this.

ZeRO flattens each parameter group and gives every process a part of it, in float32. `l2`, `wd` and `rwd`
around an elementwise optimizer (SGD, Adam's family, Adagrad, RMSprop) do not see the difference; Adafactor's
update depends on whole matrices and is another one there, with or without decay. `pwd` raises.
"""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import deepspeed
import pytest
import tiny_models
import torch
import torch.distributed as dist
from accelerate import PartialState
from deepspeed_scripts import check_scripts

from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.measure import measure_decay

SETTINGS = [("l2", "lr")] + [(t, c) for t in ("wd", "rwd") for c in ("lr", "independent")]
BATCHES = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(0))


def build(optimizer_cls, timing, coupling="lr", seed=0, partitioned=False):
    torch.manual_seed(seed)
    with deepspeed.zero.Init(config_dict_or_path=configuration(3), enabled=partitioned):
        model = tiny_models.HandWritten()
    assert all((parameter.numel() == 0) == partitioned for parameter in model.parameters())
    return model, create_lpwd_optimizer(
        model,
        optimizer_cls,
        lr=0.05,
        weight_decay=0.4,
        decay_timing=timing,
        decay_coupling=coupling,
        match_decay_budget=True,
        layer_lr_decay=0.9,
    )


def configuration(stage):
    return {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
    }


def initialize(model, optimizer, stage):
    return deepspeed.initialize(model=model, optimizer=optimizer, config=configuration(stage))[0]


def train(engine, steps):
    part = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    for step in steps:
        engine.backward(engine(BATCHES[step, part]).square().mean())
        engine.step()


def weights(model):
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return [p.detach().clone() for p in model.parameters()]


def check(stage, optimizer_cls, timing, coupling, folder, partitioned):
    whole, optimizer = build(optimizer_cls, timing, coupling)
    for batch in BATCHES:
        optimizer.zero_grad()
        # In halves, as the processes do: where a gradient is near 0, Adam scales its rounding up.
        for half in batch.chunk(2):
            (whole(half).square().mean() / 2).backward()
        optimizer.step()
    model, optimizer = build(optimizer_cls, timing, coupling, partitioned=partitioned)
    engine = initialize(model, optimizer, stage)
    train(engine, range(3))
    assert optimizer.plan.differences(whole, optimizer.param_groups) == []
    engine.save_checkpoint(folder, tag="middle")
    train(engine, range(3, 6))
    final = weights(model)
    for expected, found in zip(whole.parameters(), final, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)

    other, optimizer = build(optimizer_cls, timing, coupling, seed=1, partitioned=partitioned)
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
    with pytest.raises(RuntimeError, match="use decay_timing 'rwd', which needs no call"):
        train(engine, range(1))
    with pytest.raises(TypeError, match="steps flat copies of the weights, which cannot be told apart"):
        measure_decay(engine.optimizer, model)


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
                # Under ZeRO 3 a model may be partitioned while it is made.
                for partitioned in (False, True)[: 1 + (stage == 3)]:
                    difference = check(stage, optimizer_cls, timing, coupling, folder[0], partitioned)
                    if dist.get_rank() == 0:
                        name = f"{optimizer_cls.__name__}{' partitioned' * partitioned}"
                        print(f"ZeRO {stage} {name} {timing} {coupling}: {difference:.1e}", flush=True)
        check_that_pwd_raises(stage)
    check_scripts(Path(folder[0]))
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])
    print("done", flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
