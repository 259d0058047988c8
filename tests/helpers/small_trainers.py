"""A tiny ViT with dropout on random images, in `LPWDTrainer` and in the stock Trainer."""

import signal
from functools import partial

import torch
from torch.utils.data import Dataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lpwd.checkpoints.mixin import CompleteCheckpointsMixin
from hf_lpwd.trainer import LPWDTrainer
from hf_lpwd.training_args import LPWDTrainingArguments

STEPS = 20
BUILT_IN = ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop", "stable_adamw"]
TIMINGS = ["l2", "wd", "rwd", "pwd"]


class Images(Dataset):
    def __init__(self, size=22, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(size, 3, 16, 16, generator=generator)
        self.labels = torch.randint(3, (size,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def make_model(num_hidden_layers=2):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=3,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.1,
    )
    return ViTForImageClassification(config)


COMMON = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 4,
    "lr_scheduler_type": "cosine",
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}


def lpwd_args(path, **changes):
    return LPWDTrainingArguments(output_dir=str(path), **{**COMMON, "weight_decay": 0.5, **changes})


class CheckpointingTrainer(CompleteCheckpointsMixin, LPWDTrainer):
    """As the trainer of the main job."""


def make_trainer(path, callbacks=None, cls=LPWDTrainer, **changes):
    return cls(
        make_model(),
        lpwd_args(path, **changes),
        train_dataset=Images(),
        eval_dataset=Images(8, seed=1),
        callbacks=callbacks,
    )


make_checkpointing = partial(make_trainer, cls=CheckpointingTrainer)


class Signal(TrainerCallback):
    def __init__(self, step, signum):
        self.step, self.signum = step, signum

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            signal.raise_signal(self.signum)


def stock_trainer(path, optimizer_cls_and_kwargs=None, **changes):
    args = TrainingArguments(output_dir=str(path), **{**COMMON, **changes})
    return Trainer(
        make_model(), args, train_dataset=Images(), optimizer_cls_and_kwargs=optimizer_cls_and_kwargs
    )


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(trainer, **kwargs):
    trainer.train(**kwargs)
    return weights(trainer.model)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
