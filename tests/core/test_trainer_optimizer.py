"""Whose arguments decide: those of the Trainer, of the factory, of an optimizer passed in."""

import logging

import pytest
import torch
from small_trainers import COMMON, Images, assert_same, lpwd_args, make_model, make_trainer, trained
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_lpwd import create_lpwd_optimizer, explain
from hf_lpwd.layers import layer_index_map
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.trainer import LPWDTrainer, LPWDTrainerMixin
from hf_lpwd.trainer_optimizer import lpwd_optimizer_factory


def stock(path, kwargs, **changes):
    args = TrainingArguments(str(path), **{**COMMON, "weight_decay": 0.5, **changes})
    kwargs = {**kwargs, "args": args} if "lr" not in kwargs else kwargs
    return Trainer(
        make_model(), args, train_dataset=Images(), optimizer_cls_and_kwargs=(lpwd_optimizer_factory, kwargs)
    )


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_the_factory_takes_the_arguments_of_a_stock_trainer(tmp_path, optim):
    flags = {"optim": optim, "adam_beta1": 0.8}
    ours = trained(make_trainer(tmp_path, **flags, decay_timing="rwd", layer_lr_decay=0.5))
    assert_same(ours, trained(stock(tmp_path, {"decay_timing": "rwd", "layer_lr_decay": 0.5}, **flags)))


def test_a_search_with_a_stock_trainer_varies_what_it_says(tmp_path):
    trainer = stock(tmp_path, {"optimizer_cls": torch.optim.NAdam, "betas": (0.7, 0.9)})
    found = []
    for trainer.args.learning_rate, trainer.args.weight_decay in ((0.1, 0.2), (0.01, 0.4)):
        trainer.optimizer = None
        optimizer = trainer.create_optimizer()
        assert (type(optimizer.base), optimizer.defaults["betas"]) == (torch.optim.NAdam, (0.7, 0.9))
        found.append((optimizer.param_groups[-1]["lr"], optimizer.param_groups[-1]["weight_decay"]))
    assert found == [(0.1, 0.2), (0.01, 0.4)]


def test_what_stands_twice_is_refused(tmp_path):
    for twice in ({"weight_decay": 0.1}, {"lr": 0.1}):
        args = TrainingArguments(str(tmp_path), **COMMON)
        how = (lpwd_optimizer_factory, {"args": args, **twice})
        with pytest.raises(ValueError, match=rf"{next(iter(twice))} is in optimizer_cls"):
            Trainer(make_model(), args, optimizer_cls_and_kwargs=how).create_optimizer()
    args = lpwd_args(tmp_path)
    how = (lpwd_optimizer_factory, {"args": args, "decay_timing": "wd"})
    with pytest.raises(ValueError, match="decay_timing is in optimizer_cls_and_kwargs as well as args"):
        Trainer(make_model(), args, optimizer_cls_and_kwargs=how).create_optimizer()


def test_arguments_of_the_trainer_without_effect_are_named(tmp_path, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        stock(tmp_path, {"lr": 0.123, "weight_decay": 0.5}).create_optimizer()
    finally:
        logger.removeHandler(caplog.handler)
    assert "uses lr=0.123 and weight_decay=0.5 of optimizer_cls_and_kwargs; learning_rate" in caplog.text
    assert 'pass {"args": args} instead' in caplog.text


def test_an_optimizer_that_contradicts_the_arguments_is_refused(tmp_path):
    model = make_model()
    for changes, message in (
        ({"weight_decay": 0.4}, r"vit\.layers\.0\..* has weight_decay 0\.133333, planned 0\.166667 \(and"),
        ({"decay_timing": "wd"}, "decay_timing is 'wd', planned 'pwd': give the arguments the same"),
        ({"layer_lr_decay": 0.5}, r"layer_lr_scale 0\.125, planned 1"),
    ):
        optimizer = create_lpwd_optimizer(model, **{"lr": 1e-2, "weight_decay": 0.5, **changes})
        trainer = LPWDTrainer(model, lpwd_args(tmp_path), optimizers=(optimizer, None))
        with pytest.raises(ValueError, match=rf"is not what the arguments say: .*{message}"):
            trainer.create_optimizer()
    unnamed = LayerwiseDecay(model.parameters(), weight_decay=0.5, lr=1e-2)
    trainer = LPWDTrainer(model, lpwd_args(tmp_path), optimizers=(unnamed, None))
    with pytest.raises(ValueError, match=r"vit\.embeddings\.cls_token has weight_decay 0\.5, planned 0 "):
        trainer.create_optimizer()


def test_methods_that_the_mixin_replaces_are_refused(tmp_path):
    class OwnOptimizer(Trainer):
        def create_optimizer(self, model=None):
            return super().create_optimizer(model)

    class OwnDecay(Trainer):
        def get_decay_parameter_names(self, model):
            return []

    class First(LPWDTrainerMixin, OwnOptimizer):
        pass

    class Second(LPWDTrainerMixin, OwnDecay):
        pass

    class Third(LPWDTrainer):
        def get_decay_parameter_names(self, model):
            return []

    with pytest.raises(ValueError, match=r"OwnOptimizer\.create_optimizer would be ignored"):
        First(make_model(), lpwd_args(tmp_path))
    with pytest.raises(ValueError, match=r"OwnDecay\.get_decay_parameter_names .*no_decay_pattern"):
        Second(make_model(), lpwd_args(tmp_path))
    with pytest.raises(ValueError, match=r"Third\.get_decay_parameter_names would be ignored"):
        Third(make_model(), lpwd_args(tmp_path))

    class InFront(LPWDTrainer):
        def create_optimizer(self, model=None):
            self.seen = True
            return super().create_optimizer(model)

    trainer = InFront(make_model(), lpwd_args(tmp_path))
    assert isinstance(trainer.create_optimizer(), LayerwiseDecay)
    assert trainer.seen


def test_a_trainer_without_arguments_says_what_it_needs():
    message = r"needs args with decay settings, such as LPWDTrainingArguments\(.*but got none"
    with pytest.raises(TypeError, match=message):
        LPWDTrainer(model=make_model())


class LossTrainer(Trainer):
    """Groups parameters itself, those of its loss among them, as sentence-transformers' trainers do."""

    rates = None

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        optimizer_cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
        rest = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
        self.loss = nn.Linear(3, 3)
        kwargs["optimizer_dict"] = [
            {
                "params": [p for p in rest if p.ndim > 1] + [self.loss.weight],
                "weight_decay": args.weight_decay,
            },
            {"params": [p for p in rest if p.ndim == 1] + [self.loss.bias], "weight_decay": 0.0},
            {"params": head, "weight_decay": args.weight_decay, "lr": 0.2},
        ]
        return optimizer_cls, kwargs


def test_groups_of_a_trainer_keep_their_learning_rate_and_get_the_plans_decay(tmp_path):
    class Mine(LPWDTrainerMixin, LossTrainer):
        pass

    trainer = Mine(make_model(), lpwd_args(tmp_path, max_steps=1), train_dataset=Images())
    trainer.train()
    plan = explain(trainer.model, weight_decay=0.5)
    found = {
        name: (group["weight_decay"], group["initial_lr"])
        for group in trainer.optimizer.param_groups
        for name in group["param_names"]
    }
    assert found == {
        **{name: (p.rate, 0.2 if "classifier" in name else 1e-2) for name, p in plan.parameters.items()},
        "outside the model.0.0": (0.5, 1e-2),
        "outside the model.1.0": (0.0, 1e-2),
    }
    held = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {trainer.loss.weight, trainer.loss.bias} <= held


def test_layers_and_a_function_as_schedule_in_the_trainer(tmp_path):
    layer_map = layer_index_map(make_model())
    trainer = LPWDTrainer(
        make_model(), lpwd_args(tmp_path), layer_map=layer_map, layer_schedule=lambda i, n: 0.1 * (n - i)
    )
    trainer.create_optimizer()
    assert trainer.layer_plan.layer_map is layer_map
    assert trainer.layer_plan.rates == {"": [0.1 * 3, 0.1 * 2, 0.1, 0.0]}


def test_layers_are_found_once_in_a_run(tmp_path, monkeypatch):
    import hf_lpwd.layers

    calls = []
    find = hf_lpwd.layers.find_places
    monkeypatch.setattr(hf_lpwd.layers, "find_places", lambda model: calls.append(1) or find(model))
    make_trainer(tmp_path, max_steps=1).train()
    assert len(calls) == 1


def test_logs_of_layers_can_be_switched_off(tmp_path):
    without = make_trainer(tmp_path, log_layers=False, max_steps=5)
    trained_without = trained(without)
    with_layers = make_trainer(tmp_path, max_steps=5)
    assert_same(trained_without, trained(with_layers))
    assert not any("layer_" in key for entry in without.state.log_history for key in entry)
    assert any("layer_" in key for entry in with_layers.state.log_history for key in entry)
