"""Memory, disk, rights and numbers that give out in a run: one line, and nothing that was saved is lost."""

import errno
import json
import math
import os
import resource
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import at_call, train
from torch.utils.data import get_worker_info
from transformers import TrainerControl, TrainerState

from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.messages import BadInputError
from hf_lpwd.training_args import LPWDTrainingArguments
from hf_lpwd.vision import prepare
from hf_lpwd.vision.data.images import ImageDataset
from hf_lpwd.vision.failures import StopWhereNotFinite, failure_line
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.progress import draw_curves

DIVERGING = [
    *("--optim", "sgd", "--learning_rate", "1e4", "--max_grad_norm", "0", "--weight_decay", "0"),
    *("--lr_scheduler_type", "constant", "--warmup_steps", "0"),
]
GO_ON = "the same command with --resume_from_checkpoint True goes on from the last complete checkpoint"
SAVING = ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "no", "--save_total_limit", "9"]
OUT_OF_MEMORY = (
    "divide --per_device_train_batch_size and multiply --gradient_accumulation_steps by the same number, "
    "which leaves each step its samples, or lower --per_device_eval_batch_size if it evaluated; with "
    "--resume_from_checkpoint True the run then goes on from its last complete checkpoint"
)
WORKER_ENDED = (
    "a process that loads images ended, most likely for want of memory or shared memory: use fewer "
    f"--dataloader_num_workers; {GO_ON}"
)


def the_line(captured):
    *before, line = captured.err.splitlines()
    assert not any("Traceback" in other or "error" in other for other in before)
    return line


def saved_in(folder):
    return [path.name for path in folder.iterdir() if path.is_dir() or path.suffix == ".safetensors"]


def assert_whole(folder, *steps):
    found = [path for path in folder.iterdir() if path.is_dir()]
    assert {path.name for path in found} == {f"checkpoint-{step}" for step in steps}
    assert [why_corrupt(str(path)) for path in found] == [None] * len(found)


def test_out_of_memory_it_goes_on_with_smaller_batches(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        step = at_call(3, lambda: torch.empty(10**14), ImageTrainer.training_step)
        patch.setattr(ImageTrainer, "training_step", step)
        assert train(tmp_path / "out", *SAVING) == 2
    assert the_line(capsys.readouterr()) == (
        f"hf-lpwd train: error: out of memory (tried to allocate 400000000000000 bytes): {OUT_OF_MEMORY}"
    )
    assert_whole(tmp_path / "out", 1, 2)
    smaller = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "4"]
    assert train(tmp_path / "out", *SAVING, *smaller, "--resume_from_checkpoint", "True") == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert len(state["log_history"]) == 5


def test_a_progress_bar_does_not_hide_the_line(tmp_path, monkeypatch, capfd):
    step = at_call(2, lambda: torch.empty(10**14), ImageTrainer.training_step)
    monkeypatch.setattr(ImageTrainer, "training_step", step)
    terminal = SimpleNamespace(stdout=sys.stdout, stderr=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("hf_lpwd.vision.progress.sys", terminal)
    assert train(tmp_path / "out", "--disable_tqdm", "False") == 2
    printed = capfd.readouterr().err
    assert "1/4" in printed
    assert [line for line in printed.splitlines() if line.startswith("hf-lpwd train: error: out of memory (")]


@pytest.mark.parametrize(
    ("limit", "said"),
    [(100_000, "File too large (os error 27)"), (700_000, "unexpected pos")],
    ids=["weights", "optimizer"],
)
def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch, capsys, limit, said):
    """A limit on the size of files is met as a full disk is; in the words of safetensors and of torch."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    with monkeypatch.context() as patch:
        patch.setattr(ImageTrainer, "_save_checkpoint", at_call(3, fill, ImageTrainer._save_checkpoint))
        try:
            assert train(tmp_path / "out", *SAVING) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = the_line(capsys.readouterr())
    assert line.startswith("hf-lpwd train: error: a file could not be written, the disk may be full (")
    assert said in line
    assert line.endswith(f"): free some space; {GO_ON}")
    assert_whole(tmp_path / "out", 1, 2)
    assert train(tmp_path / "out", *SAVING, "--resume_from_checkpoint", "True") == 0
    assert_whole(tmp_path / "out", 1, 2, 3, 4)


def test_weights_that_are_no_numbers_end_the_run(tmp_path, capsys):
    flags = [*DIVERGING, "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]
    assert train(tmp_path / "out", *flags) == 2
    captured = capsys.readouterr()
    line = the_line(captured)
    assert line.startswith("hf-lpwd train: error: weight_norm/layer_0 is ")
    assert " with --learning_rate 10000: training diverged; start again with a lower" in line
    assert not saved_in(tmp_path / "out")


def test_where_layers_are_not_logged_the_evaluation_shows_it(tmp_path, capsys):
    assert train(tmp_path / "out", *DIVERGING, "--logging_strategy", "no") == 2
    assert the_line(capsys.readouterr()).startswith("hf-lpwd train: error: eval_loss is nan at step 2 with ")
    assert not saved_in(tmp_path / "out")


def test_a_step_that_the_fp16_scaler_skips_ends_nothing(tmp_path):
    args = LPWDTrainingArguments(output_dir=str(tmp_path), learning_rate=0.5, use_cpu=True)
    callback, state, control = StopWhereNotFinite(), TrainerState(), TrainerControl()
    logs = {
        "loss": math.nan,
        "train_loss": math.nan,
        "grad_norm": math.nan,
        "weight_norm/layer_1": 3.0,
        "eval_loss": 2.0,
        "epoch": 1,
    }
    callback.on_log(args, state, control, logs=logs)
    with pytest.raises(
        BadInputError, match=r"weight_norm/layer_1 is inf at step 0 with --learning_rate 0\.5: "
    ):
        callback.on_log(args, state, control, logs={**logs, "weight_norm/layer_1": math.inf})


def test_a_worker_that_is_killed(tmp_path, monkeypatch, capsys):
    """As the kernel does where memory runs out."""

    def kill():
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ImageDataset, "__getitems__", at_call(2, kill, ImageDataset.__getitems__))
    assert train(tmp_path / "out", *SAVING, "--dataloader_num_workers", "1") == 2
    assert the_line(capsys.readouterr()) == (f"hf-lpwd train: error: {WORKER_ENDED}")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB"
            ),
            f"out of memory (tried to allocate 20.00 MiB): {OUT_OF_MEMORY}",
        ),
        (MemoryError(), f"out of memory: {OUT_OF_MEMORY}"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x.json"),
            "a file could not be written, the disk may be full ([Errno 28] No space left on device: "
            f"'out/x.json'): free some space; {GO_ON}",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            WORKER_ENDED,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "data/1.png"),
            "[Errno 13] Permission denied: 'data/1.png': ask for the right to it, or name another folder",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "config.json"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_said(error, line):
    assert failure_line(error) == line


@pytest.mark.parametrize(
    "error", [KeyError("name"), RuntimeError("shapes"), FileNotFoundError("config.json")]
)
def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(ImageTrainer, "training_step", at_call(2, fail, ImageTrainer.training_step))
    with pytest.raises(type(error)) as raised:
        train(tmp_path / "out", *SAVING, "--traceback")
    assert raised.value is error
    assert_whole(tmp_path / "out", 1)


def test_a_folder_without_write_permission_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "load_splits", None)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert train(tmp_path / "deep" / "out") == 2
    assert the_line(capsys.readouterr()) == (
        f"hf-lpwd train: error: output_dir is {tmp_path}/deep/out, but there is no write permission in "
        f"{tmp_path}"
    )


def test_a_last_batch_of_one_image_under_batch_norm_is_one_line(tmp_path, capsys):
    small = "depths=[1,1],hidden_sizes=[8,8],embedding_size=8,image_size=8"
    flags = ["--model_type", "resnet", "--config_overrides", small]
    assert train(tmp_path / "out", *flags, "--max_train_samples", "33") == 2
    assert the_line(capsys.readouterr()) == (
        "hf-lpwd train: error: the last batch of an epoch has one image, which the model's BatchNorm cannot "
        "normalise: leave it out with --dataloader_drop_last, or take another --per_device_train_batch_size"
    )
    assert train(tmp_path / "out", *flags, "--max_train_samples", "33", "--dataloader_drop_last") == 0


def test_a_full_disk_in_the_words_of_the_c_library():
    line = failure_line(RuntimeError("basic_ios::clear: iostream error"))
    assert line is not None
    assert line.startswith("a file could not be written, the disk may be full (basic_ios::clear: iostream er")


@pytest.mark.parametrize("name", ["a$b$", r"$\frac{", "x" * 100 + "$_$"])
def test_a_folders_name_is_no_formula(name):
    assert draw_curves([{"epoch": 1.0, "loss": 1.0}], name).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/out", "file/out"),
        ("loop/out", "loop"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_output_folder_that_cannot_be_is_one_line(tmp_path, capsys, place, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert train(tmp_path / place) == 2
    line = the_line(capsys.readouterr())
    assert message in line
    assert "Traceback" not in line
