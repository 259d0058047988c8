"""Run by test_measure_processes.py in two processes: `measure_decay` of sharded and replicated models."""

import copy

import tiny_models
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_lpwd.factory import layer_param_groups
from hf_lpwd.measure import measure_decay
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.parameters import unwrap_name

BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def sharded(model):
    for block in model.body:
        fully_shard(block)
    return fully_shard(model)


def own(value):
    """The part of a tensor that this process holds."""
    return value.to_local() if hasattr(value, "to_local") else value


def snapshot(model, optimizer):
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return [own(tensor).detach().clone() for tensor in tensors]


def make(wrap, optimizer_cls):
    torch.manual_seed(0)
    model = wrap(tiny_models.HandWritten())
    groups = layer_param_groups(model, weight_decay=0.4)
    optimizer = optimizer_cls(groups, lr=0.05)
    for _ in range(2):
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.zero_grad()
        model(BATCH).square().mean().backward()
        optimizer.step()
    return model, optimizer


def main():
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    for optimizer_cls in (torch.optim.AdamW, LayerwiseDecay):
        reference = measure_decay(*reversed(make(lambda model: model, optimizer_cls)))
        for name, wrap in (("FSDP2", sharded), ("DDP", DistributedDataParallel)):
            model, optimizer = make(wrap, optimizer_cls)
            before, rng = snapshot(model, optimizer), torch.get_rng_state()
            settings = copy.deepcopy([{**group, "params": None} for group in optimizer.param_groups])
            measured = measure_decay(optimizer, model)
            assert all(map(torch.equal, snapshot(model, optimizer), before))
            assert torch.equal(torch.get_rng_state(), rng)
            assert [{**group, "params": None} for group in optimizer.param_groups] == settings
            assert [unwrap_name(name) for name in measured.parameters] == list(reference.parameters)
            for got, expected in zip(
                measured.parameters.values(), reference.parameters.values(), strict=True
            ):
                assert abs(got.measured - expected.measured) < 2e-7
                assert got.agrees
            rows = zip(measured.rows(), reference.rows(), strict=True)
            assert all({**got, "modules": None} == {**expected, "modules": None} for got, expected in rows)
            if dist.get_rank() == 0:
                print(f"measured: {name} {optimizer_cls.__name__}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
