"""`LPWDTrainer`: equal to the stock Trainer where it has to be, and what it logs."""

import importlib

import pytest
import tiny_models
import torch
from small_trainers import BUILT_IN, TIMINGS, assert_same, make_model, make_trainer, stock_trainer, trained
from torch import nn
from transformers import (
    TrainerCallback,
)

from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.trainer_log import layer_values
from hf_lpwd.trainer_optimizer import lpwd_optimizer_factory


@pytest.fixture(autouse=True)
def no_triton(monkeypatch):
    """StableAdamW takes its triton kernel wherever triton is installed, and fails where there is no GPU."""
    module = importlib.import_module("optimi.stableadamw")
    monkeypatch.setattr(module, "_default_to_triton", lambda params: False)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"decay_timing": "rwd", "layer_schedule": "cosine"},
        {"decay_coupling": "independent", "match_decay_budget": True, "weight_decay": 0.01},
        {"layer_schedule": "0.1,0,0.2,0.3", "layer_lr_decay": 0.5},
        {"decay_all": True},
        {"no_decay_pattern": "bias|layernorm", "layer_schedule": "power:3"},
        {"decay_by_pattern": {"classifier": 0.1}},
    ],
    ids=str,
)
def test_stock_trainer_with_the_factory_gives_the_same_weights(tmp_path, flags):
    ours = trained(make_trainer(tmp_path, **flags))
    kwargs = {"lr": 1e-2, "weight_decay": 0.5, **flags}
    assert_same(ours, trained(stock_trainer(tmp_path, (lpwd_optimizer_factory, kwargs))))


@pytest.mark.parametrize("optim", BUILT_IN)
def test_without_decay_it_is_the_stock_trainer(tmp_path, optim):
    ours = trained(make_trainer(tmp_path, optim=optim, weight_decay=0.0))
    stock = trained(stock_trainer(tmp_path, optim=optim, weight_decay=0.0))
    assert_same(ours, stock)
    assert not torch.equal(ours["classifier.weight"], make_model().classifier.weight)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("optim", BUILT_IN)
def test_args_optim_decays_once_for_each_step(tmp_path, optim, timing):
    """Gradients of zero leave nothing but the decay: (1 - eta * lambda) in each of the real steps."""
    flags = {"optim": optim, "decay_timing": timing, "layer_schedule": "uniform", "warmup_steps": 0}
    trainer = make_trainer(tmp_path, **flags, max_steps=6)
    trainer.compute_loss = lambda model, inputs, **kwargs: 0.0 * model(**inputs).loss
    before = make_model().classifier.weight.detach()
    rates, step = [], trainer.create_optimizer().step

    def recorded_step(*args):
        rates.append(trainer.optimizer.param_groups[-1]["lr"])
        return step(*args)

    trainer.optimizer.step = recorded_step
    after = trained(trainer)["classifier.weight"]
    assert len(rates) == 6
    if timing == "l2":
        assert not torch.equal(after, before)
        return
    expected = before.double()
    for lr in rates:
        expected = expected * (1 - lr * 0.5)
    torch.testing.assert_close(after, expected.float(), rtol=1e-5, atol=1e-7)


def test_layers_are_logged_at_logging_steps(tmp_path):
    snapshots = {}

    class Snapshot(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model, **kwargs):
            snapshots[state.global_step + 1] = [
                (name, p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()
            ]

    trainer = make_trainer(tmp_path, [Snapshot()], logging_first_step=True, max_steps=10)
    trainer.train()
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    assert sorted(logged) == [1, 5, 10]
    for step, entry in logged.items():
        for layer in range(4):
            tensors = [(w, g) for name, w, g in snapshots[step] if trainer.layer_plan[name].layer == layer]
            weight = sum(w.double().square().sum() for w, _ in tensors).sqrt().item()
            gradient = sum(g.double().square().sum() for _, g in tensors).sqrt().item()
            assert entry[f"weight_decay/layer_{layer}"] == pytest.approx(0.5 * layer / 3)
            assert entry[f"weight_norm/layer_{layer}"] == pytest.approx(weight, rel=1e-5)
            assert entry[f"grad_to_weight/layer_{layer}"] == pytest.approx(gradient / weight, rel=1e-5)
    last = trainer.state.log_history[-1]
    assert "train_loss" in last
    assert not any("layer_" in key for key in last)


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_the_console_shows_the_loss_without_the_layers(tmp_path, disable_tqdm, capsys):
    trainer = make_trainer(tmp_path, max_steps=5, disable_tqdm=disable_tqdm)
    trainer.train()
    printed = capsys.readouterr().out
    assert "'loss'" in printed
    assert "layer_" not in printed
    assert "weight_norm/layer_1" in trainer.state.log_history[0]


def test_layers_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, report_to="tensorboard", max_steps=5)
    trainer.train()
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    accumulator = EventAccumulator(str(events)).Reload()
    assert [event.step for event in accumulator.Scalars("train/weight_norm/layer_2")] == [5]


def test_logs_of_two_stacks_name_the_stack():
    model = tiny_models.TINY_MODELS["clip"]()
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.1)
    values = layer_values(optimizer.param_groups, optimizer.plan)
    for stack, n in {"text_model": 3, "vision_model": 4}.items():
        for layer in range(n + 1):
            assert values[f"weight_decay/{stack}/layer_{layer}"] == pytest.approx(0.1 * layer / n)
    assert not any(key.startswith("grad_to_weight") for key in values)


def test_values_of_zero_weights_and_unknown_parameters():
    model = tiny_models.HandWritten(depth=2)
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.3)
    added = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [added], "param_names": ["added"], "weight_decay": 0.9})
    model(torch.ones(2, 4)).sum().backward()
    nn.init.zeros_(model.out.weight)
    nn.init.zeros_(model.out.bias)
    nn.init.zeros_(model.last_norm.weight)
    values = layer_values(optimizer.param_groups, optimizer.plan)
    assert values["weight_norm/layer_3"] == 0.0
    assert "grad_to_weight/layer_3" not in values
    assert values["grad_to_weight/layer_1"] > 0.0
    assert max(values[f"weight_decay/layer_{layer}"] for layer in range(4)) == pytest.approx(0.3)


@pytest.mark.parametrize("stage", [1, 3])
def test_flattened_groups_give_rates_alone(stage):
    """DeepSpeed's ZeRO 1 and 2 leave a part of a flattened group, and ZeRO 3 nothing."""
    model = tiny_models.HandWritten(depth=2)
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.3)
    expected = {f"weight_decay/layer_{layer}": pytest.approx(0.1 * layer) for layer in range(4)}
    assert [len(group["params"]) for group in optimizer.param_groups][-1] == 1
    for group in optimizer.param_groups:
        flat = torch.cat([parameter.detach().flatten() for parameter in group["params"]])
        group["params"] = [nn.Parameter(flat[: len(flat) // 2])] if stage == 1 else []
    assert layer_values(optimizer.param_groups, optimizer.plan) == expected
