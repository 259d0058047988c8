"""The two scripts: resuming, refusals, one process and two, command lines of transformers' scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoded_images import encode, noise
from PIL import Image
from processes import HELPERS
from raw_loop import DROPOUT, LOOP, SMALL, flags
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.checkpoints.folders import checkpoints_in
from hf_lpwd.cli import main
from hf_lpwd.vision.launch import FP16_ON_A_CPU

SCRIPTS = Path(__file__).parents[2] / "scripts"
TRAINER = SCRIPTS / "run_image_classification.py"
TIMINGS = ["l2", "wd", "rwd", "pwd"]


def launched(script, settings, processes=1, check=True, limit=300):
    """Runs a script with `accelerate launch`, or in two gloo processes, where that would start one.

    It has to end within `limit` seconds.
    """
    if processes == 1:
        launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    else:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            str(script),
            *(settings if isinstance(settings, list) else flags(settings)),
        ],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def furthest(one, other):
    """Largest difference between two models' weights.

    Without the biases of attention's keys: their gradient is 0 but for rounding, which Adam scales up.
    """
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one if not name.endswith("key.bias"))


@pytest.mark.slow
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=["trainer", "loop"])
def test_two_processes_are_one(script, timing, tmp_path):
    """The same global batches: the same weights but for the order of additions, and the same accuracy."""
    settings = {**SMALL, "decay_timing": timing, "augmentation": "crop", "weight_decay": 0.5}
    saving = {"save_strategy": "epoch"}
    if script == LOOP:
        saving = {"checkpointing_steps": "epoch", "num_warmup_steps": 2}
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings |= {"output_dir": folder, "per_device_train_batch_size": 16 // processes, **saving}
        result = launched(script, settings, processes)
        assert script == LOOP or "find_unused_parameters" not in result.stderr
        checkpoint = checkpoints_in(folder)[-1]
        states = list(checkpoint.glob("rng_state*" if script == TRAINER else "random_states_*"))
        assert len(states) == processes
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("*_results.json"))]
        found[processes] = weights(folder), {name: value for each in results for name, value in each.items()}
    difference = furthest(found[1][0], found[2][0])
    print(f"{script.name} {timing}: {difference:.1e}")
    assert difference < 3e-6
    accuracies = [name for name in found[1][1] if "accuracy" in name or "f1" in name]
    assert len(accuracies) >= 6
    assert {name: found[1][1][name] for name in accuracies} == {
        name: found[2][1][name] for name in accuracies
    }


@pytest.mark.slow
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=["trainer", "loop"])
def test_two_processes_resume_exactly(script, timing, tmp_path):
    """From step 6, in the second of two epochs of four steps; the last of each is a window of one batch."""
    settings = {**SMALL, **DROPOUT, "decay_timing": timing, "weight_decay": 0.5, "augmentation": "crop"}
    settings |= {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8}
    if script == LOOP:
        settings |= {"checkpointing_steps": 3}
        checkpoint, states = "checkpoint-6", "random_states_*"
    else:
        settings["warmup_steps"] = settings.pop("num_warmup_steps")
        settings |= {"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": False}
        checkpoint, states = "checkpoint-6", "rng_state_*"
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    launched(script, {**settings, "output_dir": through}, processes=2)
    assert len(list((through / checkpoint).glob(states))) == 2
    if script == TRAINER:
        # What a run leaves that was stopped after this checkpoint.
        shutil.copytree(through / checkpoint, resumed / checkpoint)
        shutil.copy(through / "run_settings.json", resumed)
    launched(
        script,
        {
            **settings,
            "output_dir": resumed,
            "resume_from_checkpoint": True if script == TRAINER else through / checkpoint,
        },
        processes=2,
    )
    assert_same(weights(through), weights(resumed))
    head = "classifier.weight"
    assert not torch.equal(weights(through / checkpoint)[head], weights(resumed)[head])


@pytest.mark.slow
def test_one_process_goes_on_for_two(tmp_path):
    """With batches twice as large; the loop refuses it."""
    settings = {**SMALL, "augmentation": "crop", "save_strategy": "steps", "save_steps": 6}
    settings |= {"load_best_model_at_end": False, "save_total_limit": 9, "per_device_train_batch_size": 8}
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    launched(TRAINER, {**settings, "output_dir": through}, processes=2)
    assert len(list((through / "checkpoint-6").glob("rng_state_*"))) == 2
    shutil.copytree(through / "checkpoint-6", resumed / "checkpoint-6")
    shutil.copy(through / "run_settings.json", resumed)
    settings |= {"output_dir": resumed, "resume_from_checkpoint": True}
    refused = launched(TRAINER, settings, check=False)
    assert "its devices is 2, now 1: a step has 8 samples instead of 16" in refused.stderr
    result = launched(TRAINER, {**settings, "per_device_train_batch_size": 16})
    assert (
        "devices 2, now 1, per_device_train_batch_size 8, now 16. Each step has 16 samples" in result.stderr
    )
    assert furthest(weights(through), weights(resumed)) < 3e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two class folders of images, and a ViT for 5 classes."""
    root = tmp_path_factory.mktemp("local")
    for part, count in (("train", 12), ("val", 5)):
        for label, shade in (("cat", 0), ("dog", 1)):
            for index in range(count):
                path = root / part / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = noise(20, 24, 3, seed=100 * shade + index)
                path.write_bytes(encode(Image.fromarray(pixels)))
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    ViTForImageClassification(config).save_pretrained(root / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "model")
    return root


@pytest.mark.slow
def test_a_command_line_of_transformers_trainer_script(folders, tmp_path):
    """The README's of examples/pytorch/image-classification, with local data and model."""
    command = f"""
        --train_dir {folders}/train --validation_dir {folders}/val --model_name_or_path {folders}/model
        --output_dir {tmp_path}/out --remove_unused_columns False --label_column_name label
        --do_train --do_eval --ignore_mismatched_sizes --learning_rate 2e-5 --num_train_epochs 2
        --per_device_train_batch_size 8 --per_device_eval_batch_size 8
        --logging_strategy steps --logging_steps 10 --eval_strategy epoch
        --save_strategy epoch --load_best_model_at_end True --save_total_limit 3 --seed 1337
        --cache_dir {tmp_path}/cache
    """
    launched(TRAINER, command.split())
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert 0.0 <= results["eval_accuracy"] <= 1.0
    assert weights(tmp_path / "out")["classifier.weight"].shape == (2, 16)
    assert (tmp_path / "out" / "checkpoint-6").is_dir()
    launched(TRAINER, [*command.split(), "--resume_from_checkpoint", "True"])


@pytest.mark.slow
def test_a_command_line_of_transformers_loop_script(folders, tmp_path):
    command = f"""
        --train_dir {folders}/train --validation_dir {folders}/val --model_name_or_path {folders}/model
        --output_dir {tmp_path}/out --ignore_mismatched_sizes --image_column_name image
        --label_column_name label --per_device_train_batch_size 4 --per_device_eval_batch_size 3
        --learning_rate 5e-4 --weight_decay 0.05 --num_train_epochs 2 --gradient_accumulation_steps 2
        --lr_scheduler_type cosine --num_warmup_steps 1
        --checkpointing_steps epoch --with_tracking --report_to tensorboard --seed 42
        --cache_dir {tmp_path}/cache
    """
    launched(LOOP, command.split())
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["accuracy"] in [n / 10 for n in range(11)]
    assert weights(tmp_path / "out")["classifier.weight"].shape == (2, 16)
    assert [path.name for path in checkpoints_in(tmp_path / "out")] == ["checkpoint-3", "checkpoint-6"]
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


def in_precision(name, script, settings):
    """Runs a script with the mixed precision that `accelerate launch` or `accelerate config` sets."""
    return subprocess.run(
        [sys.executable, str(script), *flags(settings)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": name},
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=["trainer", "loop"])
def test_bfloat16_autocast(script, tmp_path):
    settings = {"max_train_samples": 32, "max_eval_samples": 11, "output_dir": tmp_path}
    steps = {"bf16": True, "use_cpu": True, "max_steps": 2} if script == TRAINER else {"max_train_steps": 2}
    result = in_precision("bf16", script, {**settings, **steps})
    assert result.returncode == 0, result.stderr[-3000:]
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}
    assert "warn" not in result.stderr.lower()


@pytest.mark.slow
@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=["trainer", "loop"])
def test_float16_on_a_cpu_is_refused(script, tmp_path):
    """accelerate would train in float32 there without a word."""
    result = in_precision("fp16", script, {"output_dir": tmp_path / "out"})
    assert result.returncode == 2
    assert result.stderr == f"{script.name}: error: {FP16_ON_A_CPU}\n"
    assert not (tmp_path / "out").exists()


def test_the_flag_fp16_on_a_cpu_is_refused(tmp_path, capfd):
    assert main(["train", "--fp16", "--use_cpu", "--output_dir", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr().err == f"hf-lpwd train: error: {FP16_ON_A_CPU}\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=["trainer", "loop"])
def test_bad_input_is_one_line_and_exit_code_2(script, tmp_path):
    result = subprocess.run(
        [sys.executable, str(script), "--train_dir", "nowhere", "--output_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == f"{script.name}: error: no such folder: nowhere\n"


def assert_said_once(result, line):
    """By one process, and again by the launcher, at the end of its own report."""
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines.count(line) == 1, result.stderr
    assert f"  traceback : {line}" in lines[-20:]


BAD_INPUT = {
    "flag": (["--learning_rat", "3"], "unknown flag '--learning_rat': did you mean '--learning_rate'?"),
    "setting": (
        ["--decay_timing", "foo", "--output_dir", "OUT"],
        "argument --decay_timing/--decay-timing: invalid choice: 'foo' "
        "(choose from 'l2', 'wd', 'rwd', 'pwd')",
    ),
    "folder": (["--train_dir", "nowhere", "--output_dir", "OUT"], "no such folder: nowhere"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "what"),
    [(TRAINER, "flag"), (TRAINER, "setting"), (TRAINER, "folder"), (LOOP, "setting"), (LOOP, "folder")],
    ids=["trainer-flag", "trainer-setting", "trainer-folder", "loop-setting", "loop-folder"],
)
def test_two_processes_say_once_what_is_wrong(script, what, tmp_path):
    argv, message = BAD_INPUT[what]
    argv = [str(tmp_path / "out") if argument == "OUT" else argument for argument in argv]
    result = launched(script, argv, processes=2, check=False, limit=90)
    line = f"{script.name}: error: {message}"
    assert_said_once(result, line)
    assert result.stderr.splitlines()[0] == line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_accelerate_launch_says_first_what_is_wrong():
    """Then it prints its own traceback, and ends with its own exit code."""
    argv, message = BAD_INPUT["flag"]
    result = launched(TRAINER, argv, check=False, limit=90)
    assert result.stderr.splitlines()[0] == f"{TRAINER.name}: error: {message}"
    assert result.stderr.count(message) == 1
    assert result.stderr.splitlines()[-1].endswith("returned non-zero exit status 2.")
    assert result.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "process", "message"),
    [
        ("disk", "0", "a file could not be written, the disk may be full ("),
        ("disk", "1", "a file could not be written, the disk may be full ("),
        ("memory", "1", "out of memory (tried to allocate 400000000000000 bytes): divide --per_device_train"),
    ],
)
def test_what_fails_in_one_process_ends_both(what, process, message, tmp_path):
    out = tmp_path / "out"
    argv = [what, process, *flags({**SMALL, "output_dir": out, "save_strategy": "steps", "save_steps": 1})]
    argv += ["--eval_strategy", "no", "--save_total_limit", "9", "--disable_tqdm", "True"]
    result = launched(HELPERS / "failing_run.py", argv, processes=2, check=False, limit=90)
    said = [
        line for line in result.stderr.splitlines() if line.startswith(f"{TRAINER.name}: error: {message}")
    ]
    assert len(said) == 1, result.stderr
    assert_said_once(result, said[0])
    checkpoints = [path for path in out.iterdir() if path.name.startswith("checkpoint-")]
    assert [(path.name, why_corrupt(str(path))) for path in checkpoints] == [("checkpoint-1", None)]


@pytest.mark.slow
def test_a_damaged_image_that_one_process_meets_ends_both(folders, tmp_path):
    """While it trains: the images are read when they are asked for."""
    data = tmp_path / "data"
    shutil.copytree(folders / "train", data)
    (data / "dog" / "7.png").write_bytes(b"no image")
    settings = {"train_dir": data, "output_dir": tmp_path / "out", "model_name_or_path": folders / "model"}
    settings |= {"ignore_mismatched_sizes": True, "per_device_train_batch_size": 2, "train_val_split": 0.1}
    argv = ["image", "0", *flags({**settings, "cache_dir": tmp_path / "cache"})]
    result = launched(HELPERS / "failing_run.py", argv, processes=2, check=False, limit=90)
    said = [line for line in result.stderr.splitlines() if line.startswith(f"{TRAINER.name}: error: ")]
    assert len(said) == 1, result.stderr
    assert "dog/7.png): the image cannot be decoded" in said[0]
    # Written where training begins.
    assert (tmp_path / "out" / "run_settings.json").exists()
    assert_said_once(result, said[0])
