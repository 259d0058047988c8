"""In `LPWDTrainer` weights decay exactly once for each real step of the optimizer.

Gradients of zero leave nothing but the decay: after the steps with learning rates eta_1, eta_2, ... a weight
is what it was times (1 - eta_1 lambda)(1 - eta_2 lambda)..., which float64 computes beside it.
"""

import math

import pytest
import torch
from small_trainers import make_model, make_trainer, weights

DECAYING = ["wd", "rwd", "pwd"]
FLAGS = {"layer_schedule": "uniform", "warmup_steps": 0, "max_steps": -1, "num_train_epochs": 2}


def counted(path, timing, **changes):
    """Returns a trainer without gradients, and the learning rate of each real step that it will make."""
    trainer = make_trainer(path, decay_timing=timing, **{**FLAGS, **changes})
    trainer.compute_loss = lambda model, inputs, **kwargs: 0.0 * model(**inputs).loss
    rates = []
    optimizer = trainer.create_optimizer()
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: rates.append(opt.param_groups[-1]["lr"]))
    return trainer, rates


def assert_decayed(trainer, rates):
    expected = make_model().classifier.weight.detach().double()
    for rate in rates:
        expected = expected * (1 - rate * 0.5)
    found = {name.removeprefix("_orig_mod."): value for name, value in weights(trainer.model).items()}
    torch.testing.assert_close(found["classifier.weight"].double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 12), (3, 4), (4, 4)])
@pytest.mark.parametrize("timing", DECAYING)
def test_windows_of_batches(tmp_path, timing, accumulation, steps):
    """22 samples are six batches, the last of two samples: in windows of 4, the last has two batches."""
    trainer, rates = counted(tmp_path, timing, gradient_accumulation_steps=accumulation, max_grad_norm=0.5)
    trainer.train()
    assert len(rates) == trainer.state.global_step == steps
    assert_decayed(trainer, rates)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("timing", DECAYING)
def test_float16_steps_that_the_scaler_skips(tmp_path, timing, optim):
    """Infinite losses in the windows 1, 2 and 5 of 6. CPUs have no fp16 training in accelerate but this."""
    trainer, rates = counted(
        tmp_path, timing, optim=optim, gradient_accumulation_steps=2, lr_scheduler_type="constant"
    )
    accelerator = trainer.accelerator
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    windows = []

    def compute_loss(model, inputs, **kwargs):
        windows.append(len(windows) // 2)
        logits = model(pixel_values=inputs["pixel_values"]).logits
        return logits.float().sum() * (math.inf if windows[-1] in (0, 1, 4) else 0.0)

    trainer.compute_loss = compute_loss
    try:
        trainer.train()
    finally:
        accelerator.state._mixed_precision = "no"
    assert windows[-1] == 5
    assert rates == [1e-2] * 3
    assert accelerator.scaler.get_scale() == 0.5
    assert_decayed(trainer, rates)


@pytest.mark.parametrize("timing", DECAYING)
def test_a_compiled_model(tmp_path, timing):
    trainer, rates = counted(
        tmp_path, timing, torch_compile=True, torch_compile_backend="eager", num_train_epochs=1
    )
    trainer.train()
    assert len(rates) == trainer.state.global_step == 3
    assert_decayed(trainer, rates)
