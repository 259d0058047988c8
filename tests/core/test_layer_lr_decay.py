"""The learning rate by layer: timm's scales, schedulers and checkpoints."""

from __future__ import annotations

import pytest
import timm
import torch
from small_trainers import lpwd_args, make_trainer, trained
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from tiny_models import HandWritten
from transformers import get_scheduler

from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.plan import plan_layers

# timm counts what follows the blocks, but for the head, with the last block; this package with the head.
FINAL_NORM = {"norm.weight", "norm.bias"}
SCALES = {
    "beit_base_patch16_224": set(),
    "eva02_tiny_patch14_224": set(),
    "vit_relpos_small_patch16_224": set(),
    "resnet50": set(),
    "convnext_atto": set(),
    "convnextv2_atto": set(),
    "vit_tiny_patch16_224": FINAL_NORM,
    "deit_tiny_distilled_patch16_224": FINAL_NORM,
    "swin_tiny_patch4_window7_224": FINAL_NORM,
    "swinv2_tiny_window8_256": FINAL_NORM,
    "mixer_s32_224": FINAL_NORM,
    "xcit_nano_12_p16_224": FINAL_NORM,
    "efficientnet_b0": {"conv_head.weight", "bn2.weight", "bn2.bias"},
}


def timm_scales(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", SCALES)
def test_scales_are_timms(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = plan_layers(model, LPWDConfig(0.05, layer_lr_decay=0.7))
    theirs = timm_scales(model)
    assert theirs.keys() == plan.parameters.keys()
    assert {key for key, scale in theirs.items() if scale != plan[key].lr_scale} == SCALES[name]


def scaled(optimizer):
    """Learning rate of each group over that of the head, which has scale 1."""
    return {group["layer_lr_scale"]: group["lr"] for group in optimizer.param_groups}


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=10),
        lambda o: get_scheduler("cosine", o, 2, 10),
        lambda o: get_scheduler("polynomial", o, 2, 10, scheduler_specific_kwargs={"lr_end": 0.0}),
        lambda o: get_scheduler("inverse_sqrt", o, 2),
        lambda o: CosineLRScheduler(o, 10, warmup_t=0),
    ],
    ids=["cosine", "exponential", "linear", "one cycle", "hf cosine", "hf polynomial", "hf inverse", "timm"],
)
def test_schedulers_keep_the_scales(schedule):
    optimizer = create_lpwd_optimizer(HandWritten(), lr=0.1, weight_decay=0.1, layer_lr_decay=0.5)
    scheduler = schedule(optimizer)
    seen = set()
    for step in range(1, 6):
        optimizer.train()
        optimizer.step()
        scheduler.step(step) if isinstance(scheduler, CosineLRScheduler) else scheduler.step()
        rates = scaled(optimizer)
        assert rates == {s: pytest.approx(s * rates[1.0], rel=1e-9) for s in (0.0625, 0.125, 0.25, 0.5, 1.0)}
        seen.add(rates[1.0])
    assert len(seen) > 2


def test_a_checkpoint_with_other_scales_is_refused(tmp_path):
    flags = {"save_strategy": "steps", "save_steps": 10, "max_steps": 10}
    trained(make_trainer(tmp_path, layer_lr_decay=0.5, **flags))
    with pytest.raises(ValueError, match=r"another layer_lr_decay for .* \(saved 0\.125, now 0\.216\)"):
        make_trainer(tmp_path, layer_lr_decay=0.6, **{**flags, "max_steps": 20}).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-10")
        )


def test_a_head_rate_that_takes_away_the_weight_is_refused(tmp_path):
    """The check is that of each group's own learning rate."""
    assert lpwd_args(tmp_path, layer_lr_decay=0.5).layer_lr_decay == 0.5
    settings = {"lr": 1.0, "layer_schedule": "uniform", "layer_lr_decay": 0.5}
    with pytest.raises(ValueError, match=r"lr \* weight_decay = 1\.0 \* 1\.5 must be in"):
        create_lpwd_optimizer(HandWritten(), weight_decay=1.5, **settings)
    create_lpwd_optimizer(HandWritten(), weight_decay=0.9, **settings)
