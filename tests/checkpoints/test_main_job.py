"""Folders and checkpoints of `hf-lpwd train`: whose they are, from the command line on."""

import json
import shutil
import subprocess
import sys

import pytest
from small_runs import SMALL, at_call, train

from hf_lpwd.checkpoints import run_folder
from hf_lpwd.checkpoints.folders import checkpoints_in
from hf_lpwd.checkpoints.run_folder import sole_use
from hf_lpwd.vision.image_trainer import ImageTrainer

SAVING = ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "no", "--save_total_limit", "9"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a run of four steps, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("done") / "run"
    assert train(folder, *SAVING) == 0
    return folder


def the_line(capsys):
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


def test_after_a_mistake_at_the_first_step_the_corrected_command_runs(tmp_path, monkeypatch):
    def fail():
        raise KeyError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(ImageTrainer, "training_step", at_call(1, fail, ImageTrainer.training_step))
        assert train(tmp_path / "out", "--learning_rate", "1") != 0
    assert train(tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "run_settings.json").read_text())["learning_rate"] == 2e-3


def test_the_same_command_twice_is_one_line(tmp_path, capsys):
    with sole_use(str(tmp_path / "out")):
        assert train(tmp_path / "out") == 2
        assert the_line(capsys) == (
            f"hf-lpwd train: error: output_dir {tmp_path}/out is in use by another run: wait for its end, or "
            "name another folder"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", "1e-3", "its learning_rate is 0.002, now 0.001: its state decides learning_rate;"),
        ("optim", "sgd", "its optim is 'adamw_torch_fused', now 'sgd': its state decides optim;"),
        ("weight_decay", "0.2", "its weight_decay is 0.1, now 0.2: its state decides weight_decay;"),
        ("decay_timing", "wd", "its decay_timing is 'pwd', now 'wd': its state decides decay_timing;"),
        ("model_type", "deit", "a checkpoint of another run: its model_type is 'vit', now 'deit'; "),
        ("seed", "1", "its seed is 42, now 1; to go on all the same: --resume_with_changes"),
        ("num_train_epochs", "1", "its num_train_epochs is 2.0, now 1.0; to go on all the same"),
        ("lr_scheduler_type", "linear", "its lr_scheduler_type is 'cosine', now 'linear'; to go on"),
        ("per_device_train_batch_size", "16", "its per_device_train_batch_size is 32, now 16; to go on"),
        ("label_smoothing_factor", "0.2", "its label_smoothing_factor is 0.1, now 0.2; to go on all the"),
        ("max_train_samples", "65", "its max_train_samples is 64, now 65; to go on all the same"),
    ],
)
def test_a_named_checkpoint_of_another_run_is_refused(done, tmp_path, capsys, name, value, said):
    checkpoint = done / "checkpoint-2"
    flags = [*SAVING, f"--{name}", value, "--resume_from_checkpoint", str(checkpoint)]
    assert train(tmp_path / "out", *flags) == 2
    line = the_line(capsys)
    refused = f"hf-lpwd train: error: resume_from_checkpoint is '{checkpoint}', a checkpoint of another run: "
    assert line.startswith(refused)
    assert said in line
    assert not (tmp_path / "out").exists()


def test_with_the_flag_it_goes_on_and_the_card_says_so(done, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(run_folder.logger, "warning_once", warned.append)
    flags = [*SAVING, "--seed", "1", "--resume_with_changes"]
    assert train(tmp_path / "out", *flags, "--resume_from_checkpoint", str(done / "checkpoint-2")) == 0
    assert [path.name for path in checkpoints_in(tmp_path / "out")] == ["checkpoint-3", "checkpoint-4"]
    said = "checkpoint-2: its seed is 42, now 1"
    assert set(warned) == {f"going on from another run's {said}"}
    assert (
        json.loads((tmp_path / "out" / "card.json").read_text())["settings"]["resumed_with_changes"] == said
    )
    # Resumed once more, the record keeps it.
    (tmp_path / "out" / "model.safetensors").unlink()
    assert train(tmp_path / "out", *flags, "--resume_from_checkpoint", "True") == 0
    record = json.loads((tmp_path / "out" / "run_settings.json").read_text())
    assert record["resumed_with_changes"] == said


def test_the_last_checkpoint_of_a_longer_run_is_not_the_model_of_a_shorter_one(done, tmp_path, capsys):
    flags = [*SAVING, "--num_train_epochs", "1", "--resume_with_changes"]
    assert train(tmp_path / "out", *flags, "--resume_from_checkpoint", str(done / "checkpoint-4")) == 2
    assert the_line(capsys).endswith(
        "is step 4 of 4, and this run ends at step 2: there is nothing left to train"
    )
    assert not (tmp_path / "out").exists()


def test_folders_that_only_look_like_checkpoints_stay(tmp_path):
    folder = tmp_path / "checkpoint-3" / "run"
    assert train(folder, *SAVING) == 0
    for name in ("checkpoint-mine", "checkpoint-1-mine", "damaged-checkpoint-4"):
        shutil.copytree(folder / "checkpoint-1", folder / name)
    limited = [*SAVING[:-1], "1", "--eval_strategy", "steps", "--eval_steps", "1"]
    shutil.rmtree(folder / "checkpoint-4")
    assert train(folder, *limited, "--resume_from_checkpoint", "True") == 0
    kept = {path.name for path in folder.iterdir() if "checkpoint-" in path.name}
    assert {"checkpoint-mine", "checkpoint-1-mine", "damaged-checkpoint-4", "checkpoint-4"} == kept


def test_a_finished_run_says_that_it_is_replaced_and_a_resumed_one_compares_no_fractions(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "hf_lpwd", "train", *SMALL, *SAVING, "--output_dir", str(folder)]

    def run(*flags):
        result = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        return result.stderr

    assert "trained again" not in run()
    said = " ".join(run().split())
    assert f"{folder} holds this run, finished: it is trained again, and its results are replaced" in said
    shutil.rmtree(folder / "checkpoint-4")
    resumed = run("--resume_from_checkpoint", "True")
    assert "trained again" not in resumed
    assert "do not match" not in resumed
