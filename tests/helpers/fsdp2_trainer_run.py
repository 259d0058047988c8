"""Run by test_fsdp2_resume.py in two processes: a Trainer with FSDP2 goes on from a checkpoint, bit for bit.

On CPUs accelerate ignores the FSDP settings of the arguments, so the trainer here puts them in place.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from small_trainers import CheckpointingTrainer, Images, lpwd_args, make_model
from transformers import ViTForImageClassification

FULL, SHARDED = "FULL_STATE_DICT", "SHARDED_STATE_DICT"
SETTINGS = [
    (FULL, "pwd", "lr"),
    (FULL, "rwd", "independent"),
    (SHARDED, "pwd", "independent"),
    (SHARDED, "wd", "lr"),
]


class FSDP2Trainer(CheckpointingTrainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        self.accelerator.state.fsdp_plugin, self.is_fsdp_enabled = plugin, True
        # Each `AcceleratorState()` takes the type from `PartialState`.
        for state in (self.accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP


def make(path, state_dict_type, timing, coupling, scramble=False):
    model = make_model()
    if scramble:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    args = lpwd_args(
        path,
        decay_timing=timing,
        decay_coupling=coupling,
        weight_decay=0.3,
        layer_lr_decay=0.9,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        fsdp=True,
        fsdp_config={
            "version": 2,
            "state_dict_type": state_dict_type,
            "transformer_layer_cls_to_wrap": "ViTLayer",
        },
    )
    return FSDP2Trainer(model, args, train_dataset=Images())


def gathered(model):
    """All weights of a sharded model; each of its parameters has to be sharded."""
    return {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def main():
    for setting in SETTINGS:
        path = Path(sys.argv[1], "-".join(setting))
        through = make(path, *setting)
        through.train()
        assert dist.get_world_size() == 2
        assert through.layer_plan.differences(through.model, through.optimizer.param_groups) == []
        expected = gathered(through.model)

        through.save_model()
        loaded = ViTForImageClassification.from_pretrained(path)
        assert_same(dict(loaded.named_parameters()), expected)

        resumed = make(path, *setting, scramble=True)
        resumed.train(resume_from_checkpoint=str(path / "checkpoint-2"))
        assert_same(gathered(resumed.model), expected)
        layers = [key for key in through.state.log_history[-2] if "/layer_" in key]
        assert len(layers) == 12
        assert all(resumed.state.log_history[-2][key] == through.state.log_history[-2][key] for key in layers)
        if dist.get_rank() == 0:
            print("equal:", *setting, flush=True)
    # All is checked. Left to the interpreter, gloo's threads now and then abort the process at its end.
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
