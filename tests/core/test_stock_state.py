"""Going on with LPWD from a checkpoint that a stock optimizer has written."""

import pytest
import torch
from small_trainers import Images, lpwd_args, make_model, stock_trainer
from torch import nn

from hf_lpwd import create_lpwd_optimizer, load_stock_state
from hf_lpwd.trainer import LPWDTrainer


def moments(optimizer, model):
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: {key: value.clone() for key, value in state.items()} for p, state in optimizer.state.items()
    }


def assert_same_moments(one, other):
    assert one.keys() == other.keys()
    for name, state in one.items():
        assert state.keys() == other[name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in state.items():
            assert torch.equal(value, other[name][key]), (name, key)


def test_moments_of_a_stock_trainer_go_on(tmp_path):
    stock = stock_trainer(tmp_path, max_steps=4, weight_decay=0.1, save_strategy="steps", save_steps=4)
    stock.train()
    model = stock.model
    trainer = LPWDTrainer(model, lpwd_args(tmp_path, max_steps=1), train_dataset=Images())
    trainer.create_optimizer()
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert load_stock_state(trainer.optimizer, saved, model) == (
        "loaded exp_avg, exp_avg_sq, step of 40 of 40 parameters; learning rates and weight decay are "
        "those of this run"
    )
    assert_same_moments(moments(trainer.optimizer, model), moments(stock.optimizer.optimizer, model))
    assert trainer.optimizer.plan.config.weight_decay == 0.5
    trainer.train()
    assert {state["step"].item() for state in trainer.optimizer.state.values()} == {5.0}


@pytest.mark.parametrize("named", [False, True])
def test_moments_of_a_custom_loop_go_on(named):
    model = make_model()
    stock = torch.optim.AdamW(model.named_parameters() if named else model.parameters(), lr=0.1)
    model(pixel_values=torch.randn(2, 3, 16, 16)).logits.sum().backward()
    stock.step()
    optimizer = create_lpwd_optimizer(model, lr=0.1, weight_decay=0.1)
    load_stock_state(optimizer, stock.state_dict(), model)
    assert_same_moments(moments(optimizer, model), moments(stock, model))


def test_states_of_others_are_refused():
    model = make_model()
    optimizer = create_lpwd_optimizer(model, lr=0.1, weight_decay=0.1)
    stock = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the state dict has 2 parameters, but the model trains 40"):
        load_stock_state(optimizer, stock.state_dict(), model)
    parts = [list(model.parameters())[start : start + 10] for start in range(0, 40, 10)]
    several = torch.optim.AdamW([{"params": part} for part in parts], lr=0.1)
    with pytest.raises(ValueError, match="has 4 groups without param_names: which"):
        load_stock_state(optimizer, several.state_dict(), model)
    body_last = torch.optim.AdamW(
        [{"params": parts[3]}, {"params": [*parts[0], *parts[1], *parts[2]]}], lr=0.1
    )
    with pytest.raises(
        ValueError, match=r"groups of \[10, 30\] parameters .*, but the Trainer's have \[1\d, 2\d\]"
    ):
        load_stock_state(optimizer, body_last.state_dict(), model)
    backwards = torch.optim.AdamW(reversed(list(model.parameters())), lr=0.1)
    model(pixel_values=torch.randn(2, 3, 16, 16)).logits.sum().backward()
    backwards.step()
    with pytest.raises(ValueError, match=r"the saved exp_avg of vit\.embeddings\.cls_token has shape \(3,\)"):
        load_stock_state(optimizer, backwards.state_dict(), model)
    assert optimizer.state == {}
