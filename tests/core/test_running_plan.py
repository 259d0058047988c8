"""The groups of the optimizer that runs are what the plan says, however it came to run.

Two processes of DDP and FSDP2 are in tests/helpers/sharded_run.py, DeepSpeed is in deepspeed_run.py there.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_trainers import COMMON, Images, lpwd_args, make_model
from tiny_models import HandWritten
from transformers import Trainer, TrainingArguments

from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.plan import plan_layers
from hf_lpwd.trainer import LPWDTrainer
from hf_lpwd.trainer_optimizer import lpwd_optimizer_factory

# peft asks transformers by a name that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = {
    "decay_timing": "rwd",
    "layer_schedule": "power:3",
    "match_decay_budget": True,
    "decay_by_pattern": {r"embeddings\.": 0.02},
    "layer_lr_decay": 0.5,
}
CONFIG = LPWDConfig(0.1, **SETTINGS)


def with_lora(model):
    return get_peft_model(
        model,
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    )


def assert_as_planned(model, optimizer, plan):
    """All groups, read one by one, without `LayerPlan.differences`."""
    found = {}
    for group in optimizer.param_groups:
        assert (group["decay_timing"], group["decay_coupling"]) == ("rwd", "lr")
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            found[name] = group["weight_decay"], group["initial_lr"] / 1e-2, parameter
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trained.keys()
    for name, (rate, lr_scale, parameter) in found.items():
        assert rate == plan[name].rate
        assert lr_scale == pytest.approx(plan[name].lr_scale, rel=1e-12)
        assert parameter is trained[name]
    assert plan.differences(model, optimizer.param_groups) == []


@pytest.mark.parametrize("wrap", [lambda model: model, with_lora], ids=["plain", "PEFT"])
def test_lpwd_trainer(tmp_path, wrap):
    model = wrap(make_model())
    args = lpwd_args(tmp_path, **{**SETTINGS, "weight_decay": 0.1, "max_steps": 2})
    trainer = LPWDTrainer(model, args, train_dataset=Images())
    assert trainer.layer_plan is None
    trainer.train()
    assert trainer.layer_plan == plan_layers(model, CONFIG)
    assert_as_planned(model, trainer.optimizer, trainer.layer_plan)


def test_stock_trainer(tmp_path):
    model = make_model()
    args = TrainingArguments(str(tmp_path), **{**COMMON, "weight_decay": 0.1, "max_steps": 2})
    how = (lpwd_optimizer_factory, {"args": args, **SETTINGS})
    trainer = Trainer(model, args, train_dataset=Images(), optimizer_cls_and_kwargs=how)
    trainer.train()
    assert_as_planned(model, trainer.optimizer, plan_layers(model, CONFIG))


@pytest.mark.parametrize(
    "wrap",
    [lambda model: model, with_lora, lambda model: torch.compile(model, backend="eager")],
    ids=["plain", "PEFT", "compiled"],
)
def test_raw_loop(wrap):
    model = wrap(make_model())
    optimizer = create_lpwd_optimizer(model, lr=1e-2, **vars(CONFIG))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    plan = plan_layers(model, CONFIG)
    assert optimizer.plan == plan
    assert_as_planned(model, optimizer, plan)


def test_a_model_compiled_after_its_optimizer_was_made():
    model = HandWritten()
    optimizer = create_lpwd_optimizer(model, lr=1e-2, weight_decay=0.1, layer_lr_decay=0.5)
    assert optimizer.plan.differences(torch.compile(model, backend="eager"), optimizer.param_groups) == []


def test_differences_are_named():
    model = HandWritten(depth=2)
    plan = plan_layers(model, LPWDConfig(0.3, decay_timing="wd"))
    optimizer = create_lpwd_optimizer(model, lr=1e-2, weight_decay=0.6, layer_lr_decay=0.5)
    found = plan.differences(model, optimizer.param_groups)
    assert found[:2] == [
        "decay_timing is 'pwd', planned 'wd'",
        "project.weight has layer_lr_scale 0.125, planned 1",
    ]
    assert "body.0.up.weight has weight_decay 0.2, planned 0.1" in found
    assert not any(text.startswith("out.bias") for text in found)
    unnamed = [{"params": [model.out.weight, torch.ones(1)], "weight_decay": 0.3}]
    assert plan.differences(model, unnamed)[-2:] == [
        "project.weight is not in the optimizer",
        "an unknown parameter is not in the plan",
    ]
