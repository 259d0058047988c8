"""Which run a folder or a checkpoint belongs to, and what may write there or go on from it."""

import json
import os
import subprocess
import sys

import pytest

from hf_lpwd.checkpoints import run_folder
from hf_lpwd.checkpoints.folders import UNFINISHED
from hf_lpwd.checkpoints.run_folder import LOCK, check_checkpoint, check_output_dir, sole_use
from hf_lpwd.checkpoints.run_record import read_record, write_record
from hf_lpwd.files import RECORD
from hf_lpwd.messages import BadInputError

SETTINGS = {
    "model_type": "vit",
    "model_name_or_path": None,
    "dataset_name": None,
    "learning_rate": 1e-3,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.1,
    "decay_timing": "pwd",
    "layer_schedule": "linear",
    "lr_scheduler_type": "cosine",
    "label_smoothing_factor": 0.1,
    "num_train_epochs": 40.0,
    "seed": 42,
    "devices": 1,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "class_names": ["cat", "dog"],
    "rows": {"train": 8},
}


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(run_folder.logger, "warning_once", lines.append)
    return lines


def make_run(folder, **changes):
    """The folder of a run with a checkpoint; the files of that are not looked at here."""
    (folder / "checkpoint-5").mkdir(parents=True)
    for place in (folder, folder / "checkpoint-5"):
        write_record(place, {**SETTINGS, **changes})
    return folder


def test_an_empty_or_new_folder_and_the_same_run_are_right(tmp_path):
    check_output_dir(str(tmp_path / "new"), SETTINGS)
    (tmp_path / ".gitkeep").touch()
    check_output_dir(str(tmp_path), SETTINGS)
    check_output_dir(str(make_run(tmp_path / "run")), SETTINGS)
    # The data is not known before it is loaded.
    check_output_dir(str(tmp_path / "run"), {"seed": 42})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_schedule": "uniform"}, "its layer_schedule is 'linear', now 'uniform': name another folder"),
        (
            {"seed": 1, "learning_rate": 0.5},
            "its learning_rate is 0.001, now 0.5; its seed is 42, now 1: name another folder",
        ),
        (
            dict.fromkeys(["decay_timing", "dataset_name", "seed", "optim", "rows"], "x"),
            "its dataset_name is None, now 'x'; its optim is 'adamw_torch_fused', now 'x'; its decay_timing "
            "is 'pwd', now 'x'; its seed is 42, now 'x' (and 1 other settings): name another folder",
        ),
        (
            {"num_train_epochs": 7.0},
            "its num_train_epochs is 40.0, now 7.0: only a constant learning rate can go on for "
            "longer, with --resume_from_checkpoint True; name another folder",
        ),
        ({"class_names": ["cat", "cow"]}, "its class_names is ['cat', 'dog'], now ['cat', 'cow']: name"),
        ({"rows": {"train": 10}}, "its rows is {'train': 8}, now {'train': 10}: name another folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_another_run_is_refused(tmp_path, change, message):
    make_run(tmp_path / "run")
    with pytest.raises(BadInputError) as error:
        check_output_dir(str(tmp_path / "run"), {**SETTINGS, **change})
    assert str(error.value).startswith(f"output_dir {tmp_path}/run holds another run: {message}")


@pytest.mark.parametrize("left", ["nothing", "leftovers", "corrupt record"])
def test_a_folder_without_a_checkpoint_is_free(tmp_path, left):
    """After a traceback at the first step, the corrected command goes on there."""
    write_record(tmp_path, SETTINGS)
    if left == "leftovers":
        (tmp_path / "runs").mkdir()
        (tmp_path / UNFINISHED / "checkpoint-5").mkdir(parents=True)
        (tmp_path / "damaged-checkpoint-5").mkdir()
    if left == "corrupt record":
        (tmp_path / RECORD).write_text("{")
    check_output_dir(str(tmp_path), {**SETTINGS, "learning_rate": 0.01})


@pytest.mark.parametrize(
    "kept", ["model.safetensors", "model-00001-of-00002.safetensors", f"{UNFINISHED}/replaced/checkpoint-5/x"]
)
def test_a_folder_with_weights_is_not_free(tmp_path, kept):
    write_record(tmp_path, SETTINGS)
    (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kept).touch()
    with pytest.raises(BadInputError, match="holds another run: its seed is 42, now 1"):
        check_output_dir(str(tmp_path), {**SETTINGS, "seed": 1})


def test_foreign_folders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="is a file: name a folder"):
        check_output_dir(str(tmp_path / "file"), SETTINGS)
    with pytest.raises(BadInputError, match="is not empty and holds no run of hf-lpwd"):
        check_output_dir(str(tmp_path), SETTINGS)
    with pytest.raises(BadInputError, match="output_dir is empty: name a folder"):
        check_output_dir("", SETTINGS)
    (make_run(tmp_path / "run") / RECORD).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        check_output_dir(str(tmp_path / "run"), SETTINGS)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(BadInputError, match=f"there is no write permission in {tmp_path}$"):
        check_output_dir(str(tmp_path / "a" / "b"), SETTINGS)


def test_a_run_goes_on_with_another_number_of_devices_if_the_steps_are_the_same(tmp_path, warned):
    batches = ("devices", "per_device_train_batch_size", "gradient_accumulation_steps")

    def divided(*numbers, **changes):
        return {**SETTINGS, **dict(zip(batches, numbers, strict=True)), **changes}

    make_run(tmp_path, **divided(2, 8, 3))
    check_output_dir(str(tmp_path), divided(2, 8, 3))
    assert not warned
    check_output_dir(str(tmp_path), divided(1, 16, 3))
    assert warned == [
        f"{tmp_path}: the run had devices 2, now 1, per_device_train_batch_size 8, now 16. Each step has 48 "
        "samples as before, but the result is the same only up to rounding and random numbers"
    ]
    with pytest.raises(BadInputError, match=r"its seed is 42, now 1: name"):
        check_output_dir(str(tmp_path), divided(1, 16, 3, seed=1))
    refused = (
        "its devices is 2, now 1: a step has 24 samples instead of 48, go on with as many, or name another"
    )
    with pytest.raises(BadInputError, match=refused):
        check_output_dir(str(tmp_path), divided(1, 8, 3))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "why_not_resumable", lambda checkpoint: None)
    return make_run(tmp_path / "run") / "checkpoint-5"


def test_a_checkpoint_of_the_same_run_is_right(checkpoint, warned):
    assert check_checkpoint(checkpoint, SETTINGS) is None
    (checkpoint / RECORD).unlink()
    with pytest.raises(BadInputError, match="its seed is 42, now 1"):
        check_checkpoint(checkpoint, {**SETTINGS, "seed": 1})
    assert not warned
    (checkpoint.parent / RECORD).unlink()
    assert check_checkpoint(checkpoint, SETTINGS) is None
    assert warned == [f"{checkpoint} does not say which run it is of: its settings are not compared"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"lr_scheduler_type": "linear"},
        {"label_smoothing_factor": 0.0},
        {"num_train_epochs": 50.0},
        {"per_device_train_batch_size": 32},
        {"dataset_name": "beans"},
        {"rows": {"train": 9}},
    ],
    ids=" ".join,
)
def test_of_another_run_it_is_refused_and_with_the_flag_the_changes_are_named(checkpoint, warned, change):
    ((name, now),) = change.items()
    difference = f"its {name} is {SETTINGS[name]!r}, now {now!r}"
    with pytest.raises(BadInputError) as error:
        check_checkpoint(checkpoint, {**SETTINGS, **change})
    assert str(error.value) == (
        f"resume_from_checkpoint is {str(checkpoint)!r}, a checkpoint of another run: {difference}; to go on "
        "all the same: --resume_with_changes"
    )
    changes = check_checkpoint(checkpoint, {**SETTINGS, **change}, with_changes=True)
    assert changes == f"checkpoint-5: {difference}"
    assert warned == [f"going on from another run's checkpoint-5: {difference}"]


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("model_type", "swin"),
        ("optim", "sgd"),
        ("learning_rate", 0.5),
        ("weight_decay", 0.2),
        ("decay_timing", "wd"),
        ("layer_schedule", "uniform"),
        ("class_names", ["cat", "dog", "cow"]),
    ],
)
def test_what_its_state_decides_cannot_be_changed(checkpoint, name, now):
    message = (
        f"its {name} is {SETTINGS[name]!r}, now {now!r}; its seed is 42, now 1: its state decides {name};"
    )
    with pytest.raises(BadInputError) as error:
        check_checkpoint(checkpoint, {**SETTINGS, name: now, "seed": 1}, with_changes=True)
    assert message in str(error.value)
    assert str(error.value).endswith(f"use --model_name_or_path {checkpoint}")


def test_one_run_at_a_time_is_in_a_folder(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys\n"
        "from hf_lpwd.checkpoints.run_folder import sole_use\n"
        "with sole_use(sys.argv[1]):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    with pytest.raises(BadInputError) as error, sole_use(str(folder)):
        pass
    assert str(error.value) == (
        f"output_dir {folder} is in use by another run: wait for its end, or name another folder"
    )
    process.kill()
    process.communicate()
    assert (folder / LOCK).exists()
    check_output_dir(str(folder), SETTINGS)
    with sole_use(str(folder)):
        pass
    assert not list(folder.iterdir())
    folder.rmdir()
    with sole_use(str(folder)):
        assert (folder / LOCK).exists()
    assert not folder.exists()


def test_a_record_survives(tmp_path):
    write_record(tmp_path, SETTINGS)
    assert read_record(tmp_path) == SETTINGS
    assert read_record(tmp_path / "nowhere") is None
    for text in ("[]", "{", '"x"'):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path / RECORD} cannot be read"):
            read_record(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({}))
    assert read_record(tmp_path) == {}
