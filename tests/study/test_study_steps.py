"""Total decay: what a run is planned to decay is what its logged learning rates add up to."""

import pytest
from PIL import Image

from hf_lpwd.study.quiet_run import decay_steps, quiet_run, quiet_trainer
from hf_lpwd.vision.arguments import arguments_from


def test_total_decay_is_that_of_the_images_that_are_trained_on(tmp_path):
    """Half of the training images cannot be decoded, and a run has half the steps."""
    for name, shade in (("a", 0), ("b", 100)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(40):
            file = tmp_path / "data" / name / f"{i}.png"
            Image.new("L", (8, 8), shade + i).save(file)
            if i % 2:
                file.write_bytes(f"broken {name} {i}".encode())
    size = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"
    flags = {"model_type": "vit", "config_overrides": f"{size},image_size=8,patch_size=4"}
    flags |= {"dataset_name": str(tmp_path / "data"), "skip_bad_images": True, "num_train_epochs": 2}
    flags |= {"lr_scheduler_type": "constant", "learning_rate": 0.01, "per_device_train_batch_size": 4}
    with quiet_run(arguments_from(flags), total_decay=0.1, test_split=0.15) as (run, args):
        assert run.images["train"].num_skipped > 0
        assert run.facts.steps * 0.01 * args.weight_decay == pytest.approx(0.1)
        assert max(layer.rate for layer in run.plan.layers) == args.weight_decay


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
