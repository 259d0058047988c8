"""The lines of a run, from what a Trainer has logged."""

from types import SimpleNamespace

import pytest
from transformers import TrainerState

from hf_lpwd.vision.progress import EpochLines, clock, how_it_went


def state_of(*evaluations, metric="eval_accuracy", trained=None):
    history = [
        {"epoch": float(epoch), "step": 10 * epoch, metric: value}
        for epoch, value in enumerate(evaluations, start=1)
    ]
    if trained is not None:
        # The best checkpoint is evaluated once more after training.
        history += [{"train_runtime": trained}, {"epoch": float(len(evaluations)), metric: max(evaluations)}]
    epochs = len(evaluations)
    return TrainerState(
        epoch=float(epochs), num_train_epochs=4, max_steps=40, global_step=10 * epochs, log_history=history
    )


def args_for(metric="accuracy", greater_is_better=True, **changes):
    return SimpleNamespace(
        metric_for_best_model=metric,
        greater_is_better=greater_is_better,
        eval_strategy="epoch",
        **{"load_best_model_at_end": True, "max_steps": -1, **changes},
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (12.4, "0:12"), (59.6, "1:00"), (725, "12:05"), (11220, "3:07:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("values", "args", "line"),
    [
        ((0.5, 0.75, 0.75), args_for(), "epoch 3/4  loss 1.5  validation 0.75  best 0.75 (epoch 2)"),
        (
            (0.5, 0.25),
            args_for("loss", False),
            "epoch 2/4  loss 1.5  validation loss 0.25  best 0.25 (epoch 2)",
        ),
        (
            (0.5, 0.75),
            args_for("eval_loss", False),
            "epoch 2/4  loss 1.5  validation loss 0.75  best 0.5 (epoch 1)",
        ),
        ((0.5, 0.25), args_for(max_steps=40), "step 20/40  loss 1.5  validation 0.25  best 0.5 (step 10)"),
    ],
)
def test_the_line_of_an_epoch(capsys, monkeypatch, values, args, line):
    """Each step took 0.6 seconds, and so will those that are left; the loss is the mean since before."""
    lines = EpochLines("what it will do")
    now = [100.0]
    monkeypatch.setattr("hf_lpwd.vision.progress.time.monotonic", lambda: now[0])
    state = state_of(*values, metric=f"eval_{args.metric_for_best_model.removeprefix('eval_')}")
    step, state.global_step = state.global_step, 0
    lines.on_train_begin(args, state, None)
    now[0], state.global_step = 100.0 + 0.6 * step, step
    for loss in (1.0, 2.0):
        lines.on_log(args, state, None, logs={"loss": loss})
    lines.on_evaluate(args, state, None)
    left = {20: "0:12", 30: "0:06"}[step]
    assert capsys.readouterr().out == f"what it will do\n{line}  left {left}\n"


def test_how_it_went():
    assert how_it_went(state_of(0.5, 0.75, 0.25, trained=75.2), args_for()) == (
        "trained in 1:15, best epoch 2 of 4 (accuracy 0.75)"
    )
    assert how_it_went(state_of(0.5, 0.75, trained=3.0), args_for(load_best_model_at_end=False)) == (
        "trained in 0:03"
    )
    assert how_it_went(state_of(0.5, 0.25, trained=3.0), args_for(max_steps=40)) == (
        "trained in 0:03, best step 10 of 40 (accuracy 0.5)"
    )
