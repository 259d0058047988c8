"""Saving, loading and resuming with `LPWDTrainer`."""

import pytest
import torch
from small_trainers import TIMINGS, Images, assert_same, make_model, make_trainer, trained, weights
from transformers import TrainerCallback, ViTForImageClassification


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
    assert resumed.layer_plan.parameters.keys() == through.keys()


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
