"""The script with a custom training loop, run in this process with a new accelerate each time."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

LOOP = Path(__file__).parents[2] / "scripts" / "run_image_classification_no_trainer.py"
SMALL = {
    "max_train_samples": 160,
    "max_eval_samples": 53,
    "num_train_epochs": 2,
    "per_device_eval_batch_size": 8,
}
DROPOUT = {
    "num_warmup_steps": 1,
    "config_overrides": "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,"
    "intermediate_size=32,image_size=8,patch_size=4,hidden_dropout_prob=0.3",
}


def flags(settings):
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def reset_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def raw_loop():
    """Gives a function that runs the script and returns its folder, and the script as a module."""
    spec = importlib.util.spec_from_file_location("loop", LOOP)
    module = sys.modules["loop"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(output_dir, **settings):
        reset_accelerate()
        module.main(flags({**SMALL, **settings, "output_dir": output_dir}))
        return Path(output_dir)

    try:
        yield run, module
    finally:
        del sys.modules["loop"]
        reset_accelerate()
