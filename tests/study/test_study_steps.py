"""Total decay: what a run is planned to decay is what its logged learning rates add up to."""

import pytest

from hf_lpwd.study.quiet_run import decay_steps, quiet_run, quiet_trainer
from hf_lpwd.vision.arguments import arguments_from


@pytest.mark.parametrize(
    "flags",
    [
        {"num_train_epochs": 1, "per_device_train_batch_size": 60, "warmup_steps": 0.4},
        {"max_steps": 5, "lr_scheduler_type": "constant"},
        {"num_train_epochs": 2, "per_device_train_batch_size": 70, "gradient_accumulation_steps": 2},
        {"max_steps": 4, "decay_coupling": "independent"},
    ],
)
def test_total_decay_is_the_sum_over_the_steps(flags):
    short = {"max_train_samples": 300, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    with quiet_run(arguments_from(short | flags), total_decay=0.02) as (run, args):
        assert decay_steps(args, 300) * args.weight_decay == pytest.approx(0.02)
        trainer = quiet_trainer(run, args)
        trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(rates) == trainer.state.max_steps == run.facts.steps
    per_step = [1.0] * len(rates) if args.decay_coupling == "independent" else rates
    assert sum(per_step) * args.weight_decay == pytest.approx(0.02)
