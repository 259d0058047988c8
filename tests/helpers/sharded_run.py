"""Run by test_sharded.py in two processes: training with FSDP2 and DDP against training in one process.

FSDP2 by torch's `fully_shard`, and by accelerate, which on CPUs has to be told that it is in use.
"""

import copy
import os

import tiny_models
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import optimizer_from_plan
from hf_lpwd.plan import plan_layers
from hf_lpwd.trainer_log import layer_values

SETTINGS = [("l2", "lr")] + [(t, c) for t in ("wd", "rwd", "pwd") for c in ("lr", "independent")]
BATCHES = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(0))


def build(optimizer_cls, timing, coupling, sharded=True, seed=0):
    torch.manual_seed(seed)
    model = tiny_models.HandWritten()
    config = LPWDConfig(0.4, decay_timing=timing, decay_coupling=coupling, layer_lr_decay=0.9)
    plan = plan_layers(model, config)
    if sharded:
        for block in model.body:
            fully_shard(block)
        fully_shard(model)
    optimizer = optimizer_from_plan(plan, model, optimizer_cls, lr=0.05)
    return model, optimizer, plan


def train(model, optimizer, steps, rank=None):
    for step in steps:
        batch = BATCHES[step] if rank is None else BATCHES[step, 4 * rank : 4 * rank + 4]
        optimizer.zero_grad()
        optimizer.train()
        model(batch).square().mean().backward()
        optimizer.step()


def check(rank, optimizer_cls, timing, coupling):
    whole, whole_optimizer, plan = build(optimizer_cls, timing, coupling, sharded=False)
    sharded, optimizer, _ = build(optimizer_cls, timing, coupling)
    train(whole, whole_optimizer, range(3))
    train(sharded, optimizer, range(3), rank)
    assert plan.differences(sharded, optimizer.param_groups) == []
    values = layer_values(optimizer.param_groups, plan)
    for key, value in layer_values(whole_optimizer.param_groups, plan).items():
        torch.testing.assert_close(torch.tensor(values[key]), torch.tensor(value), rtol=1e-5, atol=1e-6)

    optimizer.zero_grad()
    saved_model = copy.deepcopy(get_model_state_dict(sharded))
    saved_optimizer = copy.deepcopy(get_optimizer_state_dict(sharded, optimizer))
    train(whole, whole_optimizer, range(3, 6))
    train(sharded, optimizer, range(3, 6), rank)
    for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.full_tensor().detach(), rtol=1e-4, atol=1e-5)

    resumed, resumed_optimizer, _ = build(optimizer_cls, timing, coupling, seed=1)
    set_model_state_dict(resumed, saved_model)
    set_optimizer_state_dict(resumed, resumed_optimizer, saved_optimizer)
    train(resumed, resumed_optimizer, range(3, 6), rank)
    for a, b in zip(resumed.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(a.full_tensor(), b.full_tensor())


def largest_difference(whole, trained):
    differences = []
    for a, b in zip(whole.parameters(), trained.parameters(), strict=True):
        b = b.full_tensor() if hasattr(b, "full_tensor") else b
        differences.append((a - b).abs().max().item())
    assert max(differences) < 3e-6
    return max(differences)


def check_ddp(rank, optimizer_cls, timing, coupling):
    whole, whole_optimizer, _ = build(optimizer_cls, timing, coupling, sharded=False)
    train(whole, whole_optimizer, range(6))
    model, optimizer, plan = build(optimizer_cls, timing, coupling, sharded=False)
    wrapped = DistributedDataParallel(model)
    train(wrapped, optimizer, range(6), rank)
    assert plan.differences(wrapped, optimizer.param_groups) == []
    return largest_difference(whole, model)


def check_accelerate(rank, optimizer_cls, timing, coupling):
    """With windows of two batches and clipping; accelerate swaps the tensors in the optimizer's groups."""
    whole, whole_optimizer, _ = build(optimizer_cls, timing, coupling, sharded=False)
    for step in range(0, 6, 2):
        whole_optimizer.train()
        for batch in BATCHES[step : step + 2]:
            (whole(batch).square().mean() / 2).backward()
        torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
        whole_optimizer.step()
        whole_optimizer.zero_grad()
    model, optimizer, plan = build(optimizer_cls, timing, coupling, sharded=False)
    accelerator = fsdp2_accelerator()
    model, optimizer = accelerator.prepare(model, optimizer)
    assert plan.differences(model, optimizer.param_groups) == []
    assert all(hasattr(p, "full_tensor") for group in optimizer.param_groups for p in group["params"])
    for step in range(6):
        with accelerator.accumulate(model):
            optimizer.train()
            accelerator.backward(model(BATCHES[step, 4 * rank : 4 * rank + 4]).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return largest_difference(whole, model)


def fsdp2_accelerator():
    AcceleratorState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["ResidualBlock"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == 2
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    assert dist.get_world_size() == 2
    for timing, coupling in SETTINGS:
        for optimizer_cls in (torch.optim.AdamW, torch.optim.SGD):
            setting = optimizer_cls, timing, coupling
            check(rank, *setting)
            ddp, fsdp2 = check_ddp(rank, *setting), check_accelerate(rank, *setting)
            if rank == 0:
                name = optimizer_cls.__name__
                print(f"equal: {name} {timing} {coupling}: DDP {ddp:.1e}, FSDP2 {fsdp2:.1e}", flush=True)
    # All is checked. Left to the interpreter, gloo's threads now and then abort the process at its end.
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
