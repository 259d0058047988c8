"""The two scripts: resuming, refusals, one process and two, command lines of transformers' scripts."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hub_server import READ_TOKEN, WRITE_TOKEN, Hub, use_here
from pictures import encode, noise
from PIL import Image
from processes import HELPERS
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_lpwd.checkpoints.corruption import damage
from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.launch import FP16_ON_A_CPU

SCRIPTS = Path(__file__).parents[2] / "scripts"
TRAINER, LOOP = SCRIPTS / "run_image_classification.py", SCRIPTS / "run_image_classification_no_trainer.py"
TIMINGS = ["l2", "wd", "rwd", "pwd"]
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


def load_script():
    spec = importlib.util.spec_from_file_location("loop", LOOP)
    module = importlib.util.module_from_spec(spec)
    sys.modules["loop"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loop():
    module = load_script()
    yield module
    del sys.modules["loop"]


@pytest.fixture
def run(loop):
    """Runs the script in this process; every run begins with a new accelerate."""

    def call(**settings):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        loop.main(flags({**SMALL, **settings}))
        return Path(settings["output_dir"])

    yield call
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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


@pytest.mark.parametrize("timing", TIMINGS)
def test_resuming_amid_an_epoch_is_exact(run, tmp_path, timing):
    """10 batches an epoch in windows of 3: four steps, the last of one batch. Step 6 is in the second."""
    settings = {
        **DROPOUT,
        "decay_timing": timing,
        "gradient_accumulation_steps": 3,
        "checkpointing_steps": 3,
        "augmentation": "crop",
    }
    through = run(**settings, output_dir=tmp_path / "through")
    assert sorted(path.name for path in through.glob("step_*")) == ["step_3", "step_6"]
    resumed = run(**settings, output_dir=tmp_path / "resumed", resume_from_checkpoint=through / "step_6")
    assert_same(weights(through), weights(resumed))
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (through, resumed)]
    for name in ("accuracy", "test_accuracy", "f1_macro"):
        assert results[0][name] == results[1][name]


def test_resuming_at_the_end_of_an_epoch_is_exact(run, tmp_path):
    settings = {**DROPOUT, "checkpointing_steps": "epoch"}
    through = run(**settings, output_dir=tmp_path / "through")
    resumed = run(**settings, output_dir=tmp_path / "resumed", resume_from_checkpoint=through / "epoch_0")
    assert_same(weights(through), weights(resumed))
    assert not (tmp_path / "resumed" / "epoch_0").exists()


def test_another_accumulation_in_the_launch_is_refused(run, tmp_path, monkeypatch):
    """`accelerate launch --use_deepspeed` sets the variable, to 1 where it is not told."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(BadInputError, match=r"give --gradient_accumulation_steps 2, as in DeepSpeed's conf"):
        run(output_dir=tmp_path)
    run(output_dir=tmp_path, gradient_accumulation_steps=2, max_train_steps=1)
    assert (tmp_path / "model.safetensors").is_file()


def test_the_loop_decays_once_for_each_step(run, loop, tmp_path, monkeypatch):
    """Without gradients the head shrinks by 1 - eta lambda in each of 8 steps, whatever the windows."""
    original = loop.load_model_and_processor
    kept = {}

    def without_gradients(*args):
        model, processor = original(*args)
        kept["before"] = model.classifier.weight.detach().double().clone()
        model.register_forward_hook(
            lambda module, inputs, output: output.__setitem__("loss", 0.0 * output.loss)
        )
        return model, processor

    monkeypatch.setattr(loop, "load_model_and_processor", without_gradients)
    for timing in ("wd", "rwd", "pwd"):
        folder = run(
            output_dir=tmp_path / timing,
            decay_timing=timing,
            gradient_accumulation_steps=3,
            lr_scheduler_type="constant",
            learning_rate=0.1,
            weight_decay=0.5,
        )
        expected = kept["before"] * (1 - 0.1 * 0.5) ** 8
        torch.testing.assert_close(weights(folder)["classifier.weight"].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.01}, "had learning_rate 0.001, but this one has 0.01"),
        ({"gradient_accumulation_steps": 2}, "had gradient_accumulation_steps 1, but this one has 2"),
        ({"max_train_steps": 9}, "had max_train_steps 2, but this one has 9"),
        ({"decay_timing": "wd"}, "decay_timing pwd, but this run has wd"),
        ({"layer_schedule": "cosine"}, "saved with another weight_decay for"),
        ({"resume_from_checkpoint": "nowhere"}, "'nowhere', but no checkpoint is there"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_resume_of_another_run_is_refused(run, tmp_path, change, message):
    settings = {"max_train_steps": 2, "output_dir": tmp_path, "checkpointing_steps": 1}
    run(**settings)
    with pytest.raises(ValueError, match=message):
        run(**{**settings, "resume_from_checkpoint": tmp_path / "step_1", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpointing_steps": "often"}, "checkpointing_steps is 'often', but must be a number of steps"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, but must be at least 1"),
        ({"dataset_name": "beans"}, "name a folder for the results: --output_dir"),
        ({"num_epochs": 3}, "unrecognized arguments: --num_epochs 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_mistaken_command_line_is_one_line(loop, capsys, change, message):
    with pytest.raises(SystemExit) as error:
        loop.main(flags(change))
    assert error.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_bad_data_is_refused(run, tmp_path):
    with pytest.raises(BadInputError, match="no such folder"):
        run(train_dir=tmp_path / "nowhere", output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="unknown timing 'later'"):
        run(decay_timing="later", output_dir=tmp_path / "out")


PUSHED = {"all_results.json", "config.json", "model.safetensors", "preprocessor_config.json"}
pushes = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def command(run, monkeypatch):
    """Runs the script as the command line does; returns its exit code."""

    def call(folder, *more):
        settings = {**SMALL, "max_train_steps": 1, "output_dir": folder}
        monkeypatch.setattr(sys, "argv", [str(LOOP), *flags(settings), *more])
        try:
            runpy.run_path(str(LOOP), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return call


@pushes
def test_the_loop_pushes_its_run_and_writes_no_token(hub, command, tmp_path, monkeypatch, capfd):
    use_here(hub, monkeypatch, None)
    folder = tmp_path / "out"
    more = ["--push_to_hub", "--hub_model_id", "user/digits", "--hub_token", WRITE_TOKEN]
    more += ["--with_tracking", "--report_to", "tensorboard", "--checkpointing_steps", "1"]
    assert command(folder, *more) == 0
    repo = hub.repos["user/digits"]
    assert repo.files("main") == {name: (folder / name).read_bytes() for name in PUSHED}
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"pushed: {hub.endpoint}/user/digits/commit/{repo.refs['main']}"
    written = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any("events.out" in name for name in written)
    assert "run.json" in written
    assert [name for name, content in written.items() if WRITE_TOKEN.encode() in content] == []
    assert WRITE_TOKEN not in out + err


@pushes
def test_the_loop_outlives_a_push_that_fails(hub, command, tmp_path, monkeypatch, capfd):
    use_here(hub, monkeypatch, None)
    folder = tmp_path / "my run"
    more = ["--push_to_hub", "--hub_model_id", "user/digits", "--token", READ_TOKEN]
    assert command(folder, *more) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{LOOP.name}: error: not pushed to user/digits: this token has no right to write")
    assert line.endswith(f"; the run is saved, and this uploads it: hf-lpwd push '{folder}' user/digits")
    assert {path.name for path in folder.iterdir()} == PUSHED
    assert main(["push", str(folder), "user/digits", "--token", WRITE_TOKEN]) == 0
    assert set(hub.repos["user/digits"].files("main")) == PUSHED


def test_the_loop_outlives_a_hub_that_goes_away(command, tmp_path, monkeypatch, capfd):
    with Hub() as gone:
        use_here(gone, monkeypatch)
    assert command(tmp_path / "out", "--push_to_hub") == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "error: not pushed to out: the connection to the Hub failed (ConnectError); the run is" in line
    assert {path.name for path in (tmp_path / "out").iterdir()} == PUSHED


def test_the_loop_refuses_a_name_that_no_repository_can_have(command, tmp_path, capfd):
    assert command(tmp_path / "out", "--push_to_hub", "--hub_model_id", "a/b/c") == 2
    assert "'a/b/c'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


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
        launched(script, settings, processes)
        checkpoint = sorted(folder.glob("checkpoint-*" if script == TRAINER else "epoch_*"))[-1]
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
    """From step 6, amid the second of two epochs of four steps; the last of each is a window of one batch."""
    settings = {**SMALL, **DROPOUT, "decay_timing": timing, "weight_decay": 0.5, "augmentation": "crop"}
    settings |= {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8}
    if script == LOOP:
        settings |= {"checkpointing_steps": 3}
        checkpoint, states = "step_6", "random_states_*"
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
    """Two class folders of pictures, and a ViT for 5 classes."""
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
    assert (tmp_path / "out" / "epoch_1" / "run.json").is_file()
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
    with pytest.raises(SystemExit) as end:
        main(["train", "--fp16", "--use_cpu", "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 2
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
        "unknown timing 'foo': choose one of l2, wd, rwd, pwd",
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
    assert [(path.name, damage(str(path))) for path in checkpoints] == [("checkpoint-1", None)]


@pytest.mark.slow
def test_a_damaged_picture_that_one_process_meets_ends_both(folders, tmp_path):
    """While it trains: the pictures are read when they are asked for."""
    data = tmp_path / "data"
    shutil.copytree(folders / "train", data)
    (data / "dog" / "7.png").write_bytes(b"no picture")
    settings = {"train_dir": data, "output_dir": tmp_path / "out", "model_name_or_path": folders / "model"}
    settings |= {"ignore_mismatched_sizes": True, "per_device_train_batch_size": 2, "train_val_split": 0.1}
    argv = ["picture", "0", *flags({**settings, "cache_dir": tmp_path / "cache"})]
    result = launched(HELPERS / "failing_run.py", argv, processes=2, check=False, limit=90)
    said = [line for line in result.stderr.splitlines() if line.startswith(f"{TRAINER.name}: error: ")]
    assert len(said) == 1, result.stderr
    assert "dog/7.png): the image cannot be decoded" in said[0]
    # Written where training begins.
    assert (tmp_path / "out" / "run_settings.json").exists()
    assert_said_once(result, said[0])
