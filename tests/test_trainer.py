"""`LPWDTrainer`: equal to the stock Trainer where it has to be, resumable, logged; and what it refuses."""

import importlib
import json

import pytest
import tiny_models
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lpwd.factory import create_lpwd_optimizer, lpwd_optimizer_factory
from hf_lpwd.layers import layer_index_map
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.trainer import LPWDTrainer, LPWDTrainerMixin, layer_values
from hf_lpwd.training_args import LPWDTrainingArguments

STEPS = 20
BUILT_IN = ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop", "stable_adamw"]
TIMINGS = ["l2", "wd", "rwd", "pwd"]


@pytest.fixture(autouse=True)
def no_triton(monkeypatch):
    """StableAdamW takes its triton kernel wherever triton is installed, and fails where there is no GPU."""
    module = importlib.import_module("optimi.stableadamw")
    monkeypatch.setattr(module, "_default_to_triton", lambda params: False)


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


def make_trainer(path, callbacks=None, **changes):
    return LPWDTrainer(
        make_model(),
        lpwd_args(path, **changes),
        train_dataset=Images(),
        eval_dataset=Images(8, seed=1),
        callbacks=callbacks,
    )


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


# Equality with the stock Trainer


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ({}, {}),
        ({"decay_timing": "rwd", "layer_schedule": "cosine"}, {"timing": "rwd", "schedule": "cosine"}),
        (
            {"decay_coupling": "independent", "match_decay_budget": True, "weight_decay": 0.01},
            {"coupling": "independent", "match_budget": True, "weight_decay": 0.01},
        ),
        ({"layer_schedule": "0.1,0,0.2,0.3"}, {"schedule": [0.1, 0, 0.2, 0.3]}),
        ({"decay_all": True}, {"decay_all": True}),
        (
            {"no_decay_pattern": "bias|layernorm", "layer_schedule": "power:3"},
            {"no_decay": "bias|layernorm", "schedule": "power:3"},
        ),
    ],
)
def test_stock_trainer_with_the_factory_gives_the_same_weights(tmp_path, flags, settings):
    ours = trained(make_trainer(tmp_path, **flags))
    kwargs = {"lr": 1e-2, "weight_decay": 0.5, **settings}
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


# Saving and resuming


class Evaluated(TrainerCallback):
    """Keeps the weights that an evaluation has seen."""

    def __init__(self):
        self.seen = {}

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.seen[state.global_step] = weights(model)


@pytest.mark.parametrize(
    "flags",
    [{"decay_timing": timing} for timing in TIMINGS]
    + [
        {
            "decay_timing": "pwd",
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "decay_coupling": "independent",
        },
        {"decay_timing": "rwd", "optim": "adafactor"},
    ],
    ids=str,
)
def test_resuming_is_exact(tmp_path, flags):
    flags = {"weight_decay": 0.05, "save_strategy": "steps", "save_steps": 10, **flags}
    through = trained(make_trainer(tmp_path, **flags))
    resumed = make_trainer(tmp_path, **flags)
    again = trained(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert_same(through, again)
    assert resumed.layer_map.num_layers == 3
    assert set(resumed.layer_map.index_by_name) == set(through)


def test_the_best_model_is_loaded(tmp_path):
    evaluated = Evaluated()
    trainer = make_trainer(
        tmp_path,
        [evaluated],
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=4,
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        save_total_limit=1,
    )
    trainer.train()
    assert_same(weights(trainer.model), evaluated.seen[trainer.state.best_global_step])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    flags = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trained(make_trainer(tmp_path, **flags))
    trainer = make_trainer(tmp_path, **flags)
    trainer.model = make_model(num_hidden_layers=3)
    with pytest.raises(ValueError, match="lacks weights of this model"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay_timing": "rwd"}, "decay_timing pwd, but this run has rwd"),
        ({"decay_coupling": "independent"}, "decay_coupling lr, but this run has independent"),
        ({"weight_decay": 0.4}, r"saved 0\.\d+, now 0\.\d+"),
        ({"layer_schedule": "cosine"}, r"saved 0\.\d+, now 0\.\d+"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, change, message):
    flags = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trained(make_trainer(tmp_path, **flags))
    other = make_trainer(tmp_path, **{**flags, **change})
    with pytest.raises(ValueError, match=message):
        other.train(resume_from_checkpoint=True)


def test_evaluated_saved_and_final_weights_are_undecayed(tmp_path):
    flags = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    evaluated, at_rest = Evaluated(), {}
    trainer = make_trainer(tmp_path, [evaluated], **flags)
    optimizer = trainer.create_optimizer()

    def keep_weights(*args):
        at_rest[len(at_rest) + 1] = weights(trainer.model)

    optimizer.register_step_post_hook(keep_weights)
    final = trained(trainer)
    assert sorted(evaluated.seen) == [5, 10, 15, 20]
    for step, seen in evaluated.seen.items():
        assert_same(seen, at_rest[step])
        saved = ViTForImageClassification.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert_same(weights(saved), at_rest[step])
    assert_same(final, at_rest[20])


def test_saved_and_loaded_it_predicts_the_same(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    predictions = trainer.predict(Images(8, seed=1)).predictions
    trainer.save_model(tmp_path / "saved")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        logits = loaded(Images(8, seed=1).images).logits
    assert torch.equal(torch.tensor(predictions), logits)


# Logs


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
    indices = trainer.layer_map.index_by_name
    for step, entry in logged.items():
        for layer in range(4):
            tensors = [(w, g) for name, w, g in snapshots[step] if indices[name] == layer]
            weight = sum(w.double().square().sum() for w, _ in tensors).sqrt().item()
            gradient = sum(g.double().square().sum() for _, g in tensors).sqrt().item()
            assert entry[f"weight_decay/layer_{layer}"] == pytest.approx(0.5 * layer / 3)
            assert entry[f"weight_norm/layer_{layer}"] == pytest.approx(weight, rel=1e-5)
            assert entry[f"grad_to_weight/layer_{layer}"] == pytest.approx(gradient / weight, rel=1e-5)
    last = trainer.state.log_history[-1]
    assert "train_loss" in last
    assert not any("layer_" in key for key in last)


def test_layers_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, report_to="tensorboard", max_steps=5)
    trainer.train()
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    accumulator = EventAccumulator(str(events)).Reload()
    assert [event.step for event in accumulator.Scalars("train/weight_norm/layer_2")] == [5]


def test_logs_of_two_stacks_name_the_stack():
    model = tiny_models.TINY_MODELS["clip"]()
    layer_map = layer_index_map(model)
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.1, layer_map=layer_map)
    values = layer_values(optimizer.param_groups, layer_map)
    for stack, n in layer_map.num_layers_by_stack.items():
        for layer in range(n + 1):
            assert values[f"weight_decay/{stack}/layer_{layer}"] == pytest.approx(0.1 * layer / n)
    assert not any(key.startswith("grad_to_weight") for key in values)


def test_values_of_zero_weights_and_unknown_parameters():
    model = tiny_models.HandWritten(depth=2)
    layer_map = layer_index_map(model)
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.3, layer_map=layer_map)
    added = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [added], "param_names": ["added"], "weight_decay": 0.9})
    model(torch.ones(2, 4)).sum().backward()
    nn.init.zeros_(model.out.weight)
    nn.init.zeros_(model.out.bias)
    nn.init.zeros_(model.last_norm.weight)
    values = layer_values(optimizer.param_groups, layer_map)
    assert values["weight_norm/layer_3"] == 0.0
    assert "grad_to_weight/layer_3" not in values
    assert values["grad_to_weight/layer_1"] > 0.0
    assert max(values[f"weight_decay/layer_{layer}"] for layer in range(4)) == pytest.approx(0.3)


# Arguments and refusals


def test_arguments_keep_the_trainers_meaning_and_survive_json(tmp_path):
    args = lpwd_args(tmp_path, decay_timing="rwd")
    assert isinstance(args, TrainingArguments)
    values = json.loads(args.to_json_string())
    assert (values["decay_timing"], values["layer_schedule"], values["decay_coupling"]) == (
        "rwd",
        "linear",
        "lr",
    )
    assert (values["match_decay_budget"], values["decay_all"], values["no_decay_pattern"]) == (
        False,
        False,
        None,
    )
    assert LPWDTrainingArguments(output_dir=str(tmp_path)).decay_timing == "pwd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay_timing": "later"}, "unknown timing 'later'"),
        ({"decay_coupling": "loose"}, "unknown coupling 'loose'"),
        ({"decay_timing": "l2", "decay_coupling": "independent"}, "means nothing"),
        ({"layer_schedule": "steep"}, "unknown schedule 'steep'"),
        ({"layer_schedule": "0.1,-0.2"}, r"rate of layer 1 is -0\.2"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"decay_all": True, "no_decay_pattern": "bias"}, "decay_all leaves nothing exempt"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        lpwd_args(tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_schedule": "0.1,0.2"}, "lists 2 rates, but the model has 4 layer indices"),
        ({"no_decay_pattern": "nowhere"}, "'nowhere' matches no parameter"),
        ({"weight_decay": 300.0}, r"lr \* weight_decay = 0\.01 \* 300\.0 must be in"),
        ({"optim": "sgd", "optim_args": "weight_decay=0.1"}, r"weight_decay=0\.1 stands in optim_args"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **{"layer_schedule": "uniform", **change}).train()


@pytest.mark.parametrize("key", ["params", "model", "optimizer_dict"])
def test_optimizers_that_make_their_own_groups_are_refused(tmp_path, monkeypatch, key):
    """GaLore, APOLLO, LOMO and their layer-wise variants; the packages need not be there."""
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(
        trainer, "get_optimizer_cls_and_kwargs", lambda args, model: (torch.optim.AdamW, {"lr": 1.0, key: []})
    )
    with pytest.raises(ValueError, match="makes its own parameter groups"):
        trainer.train()


def test_optimizers_that_swap_weights_are_refused(tmp_path, monkeypatch):
    class ScheduleFree(torch.optim.AdamW):
        def train(self):
            """As in the package schedulefree."""

    trainer = make_trainer(tmp_path)
    kwargs = {"lr": 1.0, "weight_decay": trainer.args.weight_decay}
    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", lambda args, model: (ScheduleFree, kwargs))
    with pytest.raises(TypeError, match="ScheduleFree cannot be wrapped: it changes the weights itself"):
        trainer.train()


def test_a_class_of_the_users(tmp_path):
    cls_and_kwargs = (torch.optim.NAdam, {"betas": (0.8, 0.9)})
    trainer = LPWDTrainer(
        make_model(), lpwd_args(tmp_path), train_dataset=Images(), optimizer_cls_and_kwargs=cls_and_kwargs
    )
    optimizer = trainer.create_optimizer()
    assert type(optimizer.base) is torch.optim.NAdam
    assert {(group["betas"], group["lr"]) for group in optimizer.param_groups} == {((0.8, 0.9), 1e-2)}


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        ((torch.optim.AdamW, {"weight_decay": 0.1}), ValueError, "weight_decay stands in optimizer_cls_and"),
        ((lpwd_optimizer_factory, {}), TypeError, "must be a class derived from torch.optim.Optimizer"),
        ((torch.optim.AdamW, {"beta": 0.1}), TypeError, "unexpected keyword argument 'beta'"),
    ],
)
def test_bad_optimizer_cls_and_kwargs(tmp_path, optimizer, error, message):
    trainer = LPWDTrainer(
        make_model(), lpwd_args(tmp_path), train_dataset=Images(), optimizer_cls_and_kwargs=optimizer
    )
    with pytest.raises(error, match=message):
        trainer.train()


def test_optimizers_passed_in(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="the AdamW passed in `optimizers` would ignore the decay settings"):
        LPWDTrainer(model, lpwd_args(tmp_path), optimizers=(torch.optim.AdamW(model.parameters()), None))
    optimizer = create_lpwd_optimizer(model, lr=1e-2, weight_decay=0.5)
    trainer = LPWDTrainer(model, lpwd_args(tmp_path), train_dataset=Images(), optimizers=(optimizer, None))
    ours = trained(trainer)
    assert trainer.layer_map.num_layers == 3
    assert_same(ours, trained(make_trainer(tmp_path)))


def test_plain_arguments_are_refused(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(TypeError, match="args must be LPWDTrainingArguments, not TrainingArguments"):
        LPWDTrainer(make_model(), args)


def test_pwd_under_deepspeed_is_refused(tmp_path, monkeypatch):
    class DeepSpeedTrainer(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.is_deepspeed_enabled = True

    class Mine(LPWDTrainerMixin, DeepSpeedTrainer):
        pass

    with pytest.raises(ValueError, match="'pwd' changes the weights before the forward pass, but DeepSpeed"):
        Mine(make_model(), lpwd_args(tmp_path))
    Mine(make_model(), lpwd_args(tmp_path, decay_timing="rwd"))


def test_the_mixin_goes_in_front_of_any_trainer(tmp_path):
    class Arguments(LPWDTrainingArguments, Seq2SeqTrainingArguments):
        pass

    class Mine(LPWDTrainerMixin, Seq2SeqTrainer):
        pass

    args = Arguments(output_dir=str(tmp_path), **{**COMMON, "weight_decay": 0.5})
    trainer = Mine(make_model(), args, train_dataset=Images())
    assert isinstance(trainer.create_optimizer(), LayerwiseDecay)
    assert_same(trained(trainer), trained(make_trainer(tmp_path)))
