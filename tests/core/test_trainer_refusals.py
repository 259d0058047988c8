"""Arguments of `LPWDTrainer`, optimizers that users bring, and what is refused."""

import json
from dataclasses import dataclass

import pytest
import torch
from small_trainers import COMMON, Images, assert_same, lpwd_args, make_model, make_trainer, trained
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_lpwd import trainer_optimizer
from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.lpwd_arguments import LPWDArguments
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.trainer import LPWDTrainer, LPWDTrainerMixin
from hf_lpwd.trainer_optimizer import lpwd_optimizer_factory
from hf_lpwd.training_args import LPWDTrainingArguments


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
        ({"decay_timing": "later"}, "unknown decay_timing 'later'"),
        ({"decay_coupling": "loose"}, "unknown decay_coupling 'loose'"),
        ({"decay_timing": "l2", "decay_coupling": "independent"}, "has no meaning"),
        ({"layer_schedule": "steep"}, "unknown layer_schedule 'steep'"),
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
        ({"optim": "sgd", "optim_args": "weight_decay=0.1"}, r"weight_decay=0\.1 is in optim_args"),
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
        trainer, "get_optimizer_cls_and_kwargs", lambda args, model: (torch.optim.AdamW, {"lr": 1.0, key: {}})
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
        ((torch.optim.AdamW, {"weight_decay": 0.1}), ValueError, "weight_decay is in optimizer_cls_and"),
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


def test_a_setting_that_the_one_argument_form_does_not_know_is_named(tmp_path):
    args = lpwd_args(tmp_path)
    given = (lpwd_optimizer_factory, {"args": args, "decay_timming": "rwd"})
    trainer = Trainer(make_model(), args, train_dataset=Images(), optimizer_cls_and_kwargs=given)
    with pytest.raises(TypeError, match="'decay_timming': did you mean 'decay_timing'"):
        trainer.create_optimizer()


def test_trainers_without_a_rate_say_that_nothing_decays(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(trainer_optimizer.logger, "warning", said.append)
    nothing, some = (lpwd_args(tmp_path, weight_decay=rate) for rate in (0.0, 0.5))
    for args in (nothing, some):
        LPWDTrainer(make_model(), args).create_optimizer()
        given = (lpwd_optimizer_factory, {"args": args})
        Trainer(make_model(), args, optimizer_cls_and_kwargs=given).create_optimizer()
    line = "weight_decay is 0, so that nothing decays: set it, e.g. to 0.05"
    assert said == [line, line]


def test_optimizers_passed_in(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="the AdamW passed in `optimizers` would ignore the decay settings"):
        LPWDTrainer(model, lpwd_args(tmp_path), optimizers=(torch.optim.AdamW(model.parameters()), None))
    optimizer = create_lpwd_optimizer(model, lr=1e-2, weight_decay=0.5)
    trainer = LPWDTrainer(model, lpwd_args(tmp_path), train_dataset=Images(), optimizers=(optimizer, None))
    ours = trained(trainer)
    assert trainer.layer_plan.rates == {"": [0.0, 0.5 / 3, 0.5 * 2 / 3, 0.5]}
    assert_same(ours, trained(make_trainer(tmp_path)))


def test_plain_arguments_are_refused(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(
        TypeError,
        match=r"decay settings, such as .* but got TrainingArguments; LPWDArguments adds",
    ):
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
    @dataclass
    class Arguments(LPWDArguments, Seq2SeqTrainingArguments):
        pass

    class Mine(LPWDTrainerMixin, Seq2SeqTrainer):
        pass

    args = Arguments(output_dir=str(tmp_path), **{**COMMON, "weight_decay": 0.5})
    trainer = Mine(make_model(), args, train_dataset=Images())
    assert isinstance(trainer.create_optimizer(), LayerwiseDecay)
    assert_same(trained(trainer), trained(make_trainer(tmp_path)))
