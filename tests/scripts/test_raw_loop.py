"""The script with a custom training loop: resuming, refusals, uploads."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from hub_server import READ_TOKEN, WRITE_TOKEN, Hub, use_here
from planted import as_if_saved, plant
from raw_loop import DROPOUT, LOOP, SMALL, flags, raw_loop, reset_accelerate
from safetensors.torch import load_file
from small_trainers import TIMINGS, assert_same

from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.checkpoints.folders import checkpoints_in
from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError


@pytest.fixture(scope="module")
def both():
    with raw_loop() as run_and_module:
        yield run_and_module


@pytest.fixture
def run(both):
    return both[0]


@pytest.fixture
def loop(both):
    return both[1]


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("timing", TIMINGS)
def test_resuming_in_the_middle_of_an_epoch_is_exact(run, tmp_path, timing):
    """10 batches an epoch in windows of 3: four steps, the last of one batch. Step 6 is in the second."""
    settings = {
        **DROPOUT,
        "decay_timing": timing,
        "gradient_accumulation_steps": 3,
        "checkpointing_steps": 3,
        "augmentation": "crop",
    }
    through = run(**settings, output_dir=tmp_path / "through")
    assert [path.name for path in checkpoints_in(through)] == ["checkpoint-3", "checkpoint-6"]
    resumed = run(
        **settings, output_dir=tmp_path / "resumed", resume_from_checkpoint=through / "checkpoint-6"
    )
    assert_same(weights(through), weights(resumed))
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (through, resumed)]
    for name in ("accuracy", "test_accuracy", "f1_macro"):
        assert results[0][name] == results[1][name]


def test_resuming_at_the_end_of_an_epoch_is_exact(run, tmp_path):
    settings = {**DROPOUT, "checkpointing_steps": "epoch"}
    through = run(**settings, output_dir=tmp_path / "through")
    resumed = run(
        **settings, output_dir=tmp_path / "resumed", resume_from_checkpoint=through / "checkpoint-10"
    )
    assert_same(weights(through), weights(resumed))
    assert not (tmp_path / "resumed" / "checkpoint-10").exists()


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


@pytest.fixture(scope="module")
def done(both, tmp_path_factory):
    """The folder of a run of two steps with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return both[0](folder, max_train_steps=2, checkpointing_steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 0.01},
            "its learning_rate is 0.001, now 0.01: its state decides learning_rate; to",
        ),
        ({"decay_timing": "wd"}, "its decay_timing is 'pwd', now 'wd': its state decides decay_timing; to"),
        ({"layer_schedule": "cosine"}, "its layer_schedule is 'linear', now 'cosine': its state decides"),
        ({"gradient_accumulation_steps": 2}, "its gradient_accumulation_steps is 1, now 2; to go on all the"),
        ({"max_train_steps": 9}, "its max_train_steps is 2, now 9; to go on all the same: --resume_with_"),
        ({"max_train_steps": 1}, "its max_train_steps is 2, now 1; to go on all the same: --resume_with_"),
        ({"seed": 1}, "its seed is 42, now 1; to go on all the same: --resume_with_changes"),
        ({"max_train_samples": 80}, "its max_train_samples is 160, now 80; to go on all the same: --resume"),
    ],
    ids=lambda value: " ".join(map(str, *value.items())) if isinstance(value, dict) else None,
)
def test_a_resume_of_another_run_is_refused(run, done, tmp_path, change, message):
    checkpoint = done / "checkpoint-1"
    settings = {"max_train_steps": 2, "checkpointing_steps": 1, "resume_from_checkpoint": checkpoint}
    with pytest.raises(BadInputError) as error:
        run(tmp_path / "out", **{**settings, **change})
    assert str(error.value).startswith(
        f"resume_from_checkpoint is '{checkpoint}', a checkpoint of another run"
    )
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
    (name,) = change
    with pytest.raises(BadInputError, match=f"output_dir {done} holds another run: its {name} is "):
        run(done, **{**settings, **change})


def test_with_the_flag_it_goes_on_and_records_what_was_different(run, done, tmp_path):
    settings = {
        "max_train_steps": 3,
        "resume_from_checkpoint": done / "checkpoint-1",
        "resume_with_changes": 1,
    }
    folder = run(tmp_path / "out", **settings, seed=1)
    record = json.loads((folder / "run_settings.json").read_text())
    assert (record["seed"], record["max_train_steps"]) == (1, 3)
    assert record["resumed_with_changes"] == (
        "checkpoint-1: its max_train_steps is 2, now 3; its seed is 42, now 1"
    )
    with pytest.raises(
        BadInputError, match="that is step 2 of 2, and this run ends at step 1: there is noth"
    ):
        run(
            tmp_path / "short",
            max_train_steps=1,
            resume_from_checkpoint=done / "checkpoint-2",
            resume_with_changes=True,
        )
    assert not (tmp_path / "short" / "model.safetensors").exists()


def test_resumed_at_its_end_it_evaluates_and_saves_the_same(run, done, tmp_path):
    flags = {"max_train_steps": 2, "checkpointing_steps": 1}
    again = run(tmp_path / "again", **flags, resume_from_checkpoint=done / "checkpoint-2")
    assert_same(weights(again), weights(done))
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (done, again)]
    # The loss of the epoch is known to the end of it.
    assert results[1] == {name: value for name, value in results[0].items() if name not in UNKNOWN}


UNKNOWN = ("epoch", "train_loss")
LISTED = [
    *("checkpoint_files.json", "model.safetensors", "optimizer.bin", "progress.json"),
    *("random_states_0.pkl", "run_settings.json"),
]


def resumed(run, done, tmp_path):
    """Resumes from a copy of a checkpoint that a test has harmed; returns what is said."""
    with pytest.raises(BadInputError) as error:
        run(
            tmp_path / "out",
            max_train_steps=2,
            checkpointing_steps=1,
            resume_from_checkpoint=tmp_path / "run" / "checkpoint-1",
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    return str(error.value)


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done / "checkpoint-1", tmp_path / "run" / "checkpoint-1")
    return tmp_path / "run" / "checkpoint-1"


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def garble(path):
    path.write_bytes(b"\x00" * path.stat().st_size)


@pytest.mark.parametrize(
    "harm", [Path.unlink, empty, cut, garble], ids=["missing", "empty", "cut", "garbage"]
)
def test_a_corrupt_checkpoint_is_refused_in_one_line(run, done, copied, tmp_path, harm):
    """The random state among them, without which other weights would come out."""
    assert sorted(path.name for path in copied.iterdir()) == LISTED
    for name in LISTED:
        kept = (copied / name).read_bytes()
        harm(copied / name)
        said = resumed(run, done, tmp_path)
        assert said.startswith(f"resume_from_checkpoint is '{copied}', but ")
        assert name in said or (name == "checkpoint_files.json" and "trainer_state.json is missing" in said)
        (copied / name).write_bytes(kept)


@pytest.mark.parametrize("kind", ["zip", "pickle", "beside"])
def test_no_file_of_its_checkpoint_runs_code(run, done, copied, tmp_path, kind):
    more = ["custom_checkpoint_0.pkl", "scheduler.bin", "scaler.pt", "pytorch_model.bin", "sampler.bin"]
    for name in [*LISTED, *more, "dl_state_dict.bin"]:
        kept = (copied / name).read_bytes() if (copied / name).exists() else None
        plant(copied / name, tmp_path / "ran", kind)
        as_if_saved(copied, name)
        resumed(run, done, tmp_path)
        assert not (tmp_path / "ran").exists(), name
        (copied / name).unlink() if kept is None else (copied / name).write_bytes(kept)
        shutil.copy(done / "checkpoint-1" / "checkpoint_files.json", copied)


def test_what_does_not_belong_to_it_is_one_line_too(run, done, copied, tmp_path):
    torch.save({}, copied / "custom_checkpoint_0.pkl")
    assert "Number of custom checkpoints" in resumed(run, done, tmp_path)


def test_killed_while_it_saves_accelerates_own_naming_leaves_no_complete_checkpoint(tmp_path, monkeypatch):
    """Why the loop does not use it: the older checkpoint is removed first, the new one written in place."""
    reset_accelerate()
    naming = {"automatic_checkpoint_naming": True, "total_limit": 1}
    accelerator = Accelerator(project_config=ProjectConfiguration(str(tmp_path), **naming))
    accelerator.prepare(torch.nn.Linear(2, 2))
    accelerator.save_state()
    assert (tmp_path / "checkpoints" / "checkpoint_0" / "random_states_0.pkl").is_file()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("accelerate.checkpointing.random.getstate", killed)
    with pytest.raises(KeyboardInterrupt):
        accelerator.save_state()
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["checkpoint_1"]
    assert [path.name for path in tmp_path.glob("checkpoints/*/*")] == ["model.safetensors"]


def test_killed_while_it_saves_the_older_checkpoint_is_complete(run, tmp_path, monkeypatch):
    original, calls = Accelerator.save_state, []

    def killed(self, folder):
        original(self, folder)
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Accelerator, "save_state", killed)
    settings = {"max_train_steps": 2, "checkpointing_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **settings)
    assert [why_corrupt(path) for path in checkpoints_in(tmp_path)] == [None]
    monkeypatch.undo()
    run(tmp_path, **settings, resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_that_are_not_finite_are_not_saved(run, tmp_path):
    with pytest.raises(
        BadInputError, match="the model's logits are NaN or infinite: training diverged; start"
    ):
        run(tmp_path, learning_rate=1e4, weight_decay=0, num_warmup_steps=0)
    assert {path.name for path in tmp_path.iterdir()} == RECORDED
    # Nothing was saved, so that the folder is free for another try.
    run(tmp_path, max_train_steps=1)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpointing_steps": "often"}, "checkpointing_steps is 'often', but must be a number of steps"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, but must be at least 1"),
        ({"max_train_steps": 0}, "max_train_steps is 0, but must be at least 1"),
        ({"max_train_steps": -3}, "max_train_steps is -3, but must be at least 1"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0, but must be above 0"),
        ({"learning_rate": 1e30}, "learning_rate is 1e+30, but must be at least 0 and at most 10000"),
        ({"num_warmup_steps": -1}, "num_warmup_steps is -1, but must be at least 0"),
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


def test_a_bad_output_dir_is_one_line(command, tmp_path, capfd):
    (tmp_path / "file").touch()
    for folder, message in (
        ("", "output_dir is empty: name a folder for the results"),
        (tmp_path / "file", f"output_dir {tmp_path}/file is a file: name a folder"),
        (tmp_path, f"output_dir {tmp_path} is not empty and holds no run of hf-lpwd: name another one"),
    ):
        assert command(folder) == 2
        assert capfd.readouterr().err.splitlines()[-1] == f"{LOOP.name}: error: {message}"


def test_bad_data_is_refused(run, tmp_path, capsys):
    with pytest.raises(BadInputError, match="no such folder"):
        run(train_dir=tmp_path / "nowhere", output_dir=tmp_path / "out")
    with pytest.raises(SystemExit):
        run(decay_timing="later", output_dir=tmp_path / "out")
    assert "--decay_timing/--decay-timing: invalid choice: 'later'" in capsys.readouterr().err


RECORDED = {"run_settings.json", "training_images.json"}
PUSHED = {
    "all_results.json",
    "config.json",
    "layer_rates.json",
    "model.safetensors",
    "preprocessor_config.json",
}
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
    assert "run_settings.json" in written
    assert [name for name, content in written.items() if WRITE_TOKEN.encode() in content] == []
    assert WRITE_TOKEN not in out + err


@pushes
def test_the_loop_outlives_a_push_that_fails(hub, command, tmp_path, monkeypatch, capfd):
    use_here(hub, monkeypatch, None)
    folder = tmp_path / "my run"
    more = ["--push_to_hub", "--hub_model_id", "user/digits", "--token", READ_TOKEN]
    assert command(folder, *more) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"{LOOP.name}: error: not pushed to user/digits: this token has no write permission"
    )
    assert line.endswith(f"; the run is saved, and this uploads it: hf-lpwd push '{folder}' user/digits")
    assert {path.name for path in folder.iterdir()} == PUSHED | RECORDED
    assert main(["push", str(folder), "user/digits", "--token", WRITE_TOKEN]) == 0
    assert set(hub.repos["user/digits"].files("main")) == PUSHED


def test_the_loop_outlives_a_hub_that_goes_away(command, tmp_path, monkeypatch, capfd):
    with Hub() as gone:
        use_here(gone, monkeypatch)
    assert command(tmp_path / "out", "--push_to_hub") == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "error: not pushed to out: the connection to the Hub failed (ConnectError); the run is" in line
    assert {path.name for path in (tmp_path / "out").iterdir()} == PUSHED | RECORDED


def test_the_loop_refuses_a_name_that_no_repository_can_have(command, tmp_path, capfd):
    assert command(tmp_path / "out", "--push_to_hub", "--hub_model_id", "a/b/c") == 2
    assert "'a/b/c'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
