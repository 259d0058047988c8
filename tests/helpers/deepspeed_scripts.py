"""Both scripts under ZeRO 1 to 3, in the processes of `deepspeed_run.py`, against one without DeepSpeed."""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from hf_lpwd.checkpoints.folders import checkpoints_in
from hf_lpwd.vision.arguments import DIGITS_RUN
from hf_lpwd.vision.hub.card import METRICS
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.models import load_model_and_processor

SCRIPTS = Path(__file__).parents[2] / "scripts"
TRAINER, LOOP = "run_image_classification.py", "run_image_classification_no_trainer.py"
COMMON = (
    "--max_train_samples 160 --max_eval_samples 53 --augmentation none --num_train_epochs 2 "
    "--learning_rate 1e-3 --lr_scheduler_type cosine --weight_decay 0.5 --match_decay_budget True"
)
FLAGS = {
    # The worse epoch is the one to keep, so that its checkpoint has to be loaded at the end.
    TRAINER: "--metric_for_best_model loss --greater_is_better True --label_smoothing_factor 0.1 "
    "--warmup_steps 2 --report_to none --disable_tqdm True",
    LOOP: "--num_warmup_steps 2 --checkpointing_steps epoch",
}
VIT = DIGITS_RUN["config_overrides"]
#: Timing -> batches in a step, and a model made anew, or loaded with a new head.
RUNS = {
    "wd": (1, f"--model_type vit --config_overrides {VIT}"),
    "rwd": (2, "--model_name_or_path {pretrained} --ignore_mismatched_sizes True"),
}
LOADS = """
import sys
from transformers import AutoImageProcessor, AutoModelForImageClassification
_, report = AutoModelForImageClassification.from_pretrained(sys.argv[1], output_loading_info=True)
AutoImageProcessor.from_pretrained(sys.argv[1])
assert not any(report.values()), report
assert not {"deepspeed", "hf_lpwd"} & sys.modules.keys()
"""


def write_pretrained(folder):
    """Saves a model of other classes than the digits."""
    arguments = ModelArguments(model_type="vit", config_overrides=VIT)
    for part in load_model_and_processor(arguments, ["no", "yes"]):
        part.save_pretrained(folder)


def without_deepspeed(*command):
    """Runs Python in one process that finds no DeepSpeed."""
    left_out = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PYTHONPATH", "DS_ACCELERATOR"}
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    subprocess.run(
        [sys.executable, *map(str, command)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment | {"ACCELERATE_USE_CPU": "true"},
    )


def flags_of(script, timing, folder, batch_size):
    model = RUNS[timing][1].format(pretrained=folder.with_name("pretrained"))
    own = ["--per_device_train_batch_size", str(batch_size), "--output_dir", str(folder)]
    return [*COMMON.split(), *FLAGS[script].split(), *model.split(), "--decay_timing", timing, *own]


def under_zero(stage, script, flags, accumulation):
    """Runs a script in this process, and the other one, under DeepSpeed; returns its exit code."""
    # On CPUs accelerate finds no backend for DeepSpeed and goes on in one process; here it finds gloo in use.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    assert PartialState(cpu=True).num_processes == 2
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto" if script == TRAINER else accumulation,
        # The Trainer clips at 1, the loop does not.
        "gradient_clipping": "auto" if script == TRAINER else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        sys.argv = [script, *flags, "--gradient_accumulation_steps", str(accumulation)]
        if script == TRAINER and accumulation == 1:
            # Else as `accelerate launch` does.
            sys.argv += ["--deepspeed", file.name]
        deepspeed_in_use = {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": file.name,
        }
        os.environ |= deepspeed_in_use
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        finally:
            for name in deepspeed_in_use:
                os.environ.pop(name, None)
            dist.barrier()
    return 0


def models(script, folder):
    """The weights that a run has saved, and those of the Trainer's checkpoints, by file name."""
    files = [folder / "model.safetensors"]
    if script == TRAINER:
        files += sorted(folder.glob("checkpoint-*/model.safetensors"))
    return {str(file.relative_to(folder)): load_file(file) for file in files}


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    largest = 0.0
    for file, weights_of_file in expected.items():
        assert found[file].keys() == weights_of_file.keys()
        for name, weight in weights_of_file.items():
            assert found[file][name].shape == weight.shape
            assert found[file][name].dtype == weight.dtype
            # The gradients of these are 0 but for rounding, which Adam scales up.
            if not name.endswith("key.bias"):
                largest = max(largest, (found[file][name] - weight).abs().max().item())
    return largest


def read(path):
    return json.loads(path.read_text())


def results(folder):
    """Metrics of a run; not its losses over a split, which the Trainer weighs by batches of each process."""
    named = {"train_loss", *METRICS, *(f"{split}_{name}" for split in ("eval", "test") for name in METRICS)}
    return {name: value for name, value in read(folder / "all_results.json").items() if name in named}


def logged_rates(folder):
    history = read(folder / "trainer_state.json")["log_history"]
    return [{k: v for k, v in entry.items() if k.startswith("weight_decay/")} for entry in history]


def check_files(script, found, expected):
    assert len(results(found)) == 7
    assert results(found) == pytest.approx(results(expected), rel=1e-5)
    if script == LOOP:
        assert read(found / "run_settings.json")["processes"] == 2
        return
    assert read(found / "run_settings.json")["devices"] == 2
    state = read(found / "trainer_state.json")
    assert state["best_global_step"] == state["global_step"] / 2
    assert read(found / "layer_rates.json") == read(expected / "layer_rates.json")
    assert read(found / "card.json")["layers"] == read(expected / "card.json")["layers"]
    assert any(logged_rates(found))
    assert logged_rates(found) == logged_rates(expected)


def check_resumed(script, flags, accumulation, folder, stage):
    """Goes on from the first epoch, the Trainer as the later checkpoint is damaged; ends with equal bits."""
    expected = models(script, folder)
    dist.barrier()
    if script == TRAINER:
        flags, resumed = [*flags, "--resume_from_checkpoint", "True"], folder
        if dist.get_rank() == 0:
            (folder / "model.safetensors").unlink()
            last = checkpoints_in(folder)[-1]
            os.truncate(next(last.rglob("*optim_states.pt")), 1000)
    else:
        resumed = folder.with_name(f"{folder.name}-resumed")
        flags = [
            *flags,
            "--resume_from_checkpoint",
            str(checkpoints_in(folder)[0]),
            "--output_dir",
            str(resumed),
        ]
    dist.barrier()
    assert under_zero(stage, script, flags, accumulation) == 0
    assert largest_difference(models(script, resumed), expected) == 0.0


def check_script(script, folder):
    for timing, (accumulation, _) in RUNS.items():
        alone = folder / f"{script}-{timing}"
        if dist.get_rank() == 0:
            flags = flags_of(script, timing, alone, 16)
            without_deepspeed(SCRIPTS / script, *flags, "--gradient_accumulation_steps", accumulation)
        dist.barrier()
        for stage in (1, 2, 3):
            shared = folder / f"{script}-{timing}-{stage}"
            flags = flags_of(script, timing, shared, 8)
            assert under_zero(stage, script, flags, accumulation) == 0
            difference = largest_difference(models(script, shared), models(script, alone))
            assert difference < 3e-6
            check_files(script, shared, alone)
            if stage == 3:
                check_resumed(script, flags, accumulation, shared, stage)
            if dist.get_rank() == 0:
                without_deepspeed("-c", LOADS, shared)
                print(f"ZeRO {stage} {script} {timing}: {difference:.1e}", flush=True)
    flags = [*flags_of(script, "rwd", folder / f"{script}-pwd", 8), "--decay_timing", "pwd"]
    assert under_zero(3, script, flags, 1) == 2


def check_scripts(folder):
    """Checks both, and writes their results into a folder."""
    if dist.get_rank() == 0:
        write_pretrained(folder / "pretrained")
    dist.barrier()
    for script in FLAGS:
        check_script(script, folder)
