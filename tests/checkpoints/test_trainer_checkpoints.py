"""Checkpoints that are complete or absent, and signals."""

import errno
import json
import shutil
import signal
import zlib
from pathlib import Path

import pytest
from small_trainers import (
    Signal,
    assert_same,
    make_checkpointing,
    stock_trainer,
    trained,
)
from transformers import TrainerCallback

from hf_lpwd.checkpoints import folders as checkpoints
from hf_lpwd.checkpoints.interruption import Interrupted, StopOnSignal
from hf_lpwd.messages import BadInputError
from hf_lpwd.trainer import LPWDTrainer

SAVING = {"save_strategy": "steps", "save_steps": 5, "decay_timing": "pwd"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with checkpoints 5, 10, 15 and 20, and its final weights."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, trained(make_checkpointing(folder, **SAVING))


@pytest.fixture
def run_folder(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def garble(path):
    path.write_bytes(b"\x00garbage" * (path.stat().st_size // 8) + b"!" * (path.stat().st_size % 8))


@pytest.mark.parametrize("harm", [Path.unlink, truncate, garble], ids=["missing", "truncated", "garbage"])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ],
)
def test_a_damaged_checkpoint_is_passed_over(run_folder, name, harm, monkeypatch):
    warnings = []
    monkeypatch.setattr(checkpoints.logger, "warning", warnings.append)
    newest = run_folder / "checkpoint-20"
    harm(newest / name)
    assert checkpoints.last_complete(str(run_folder)) == str(run_folder / "checkpoint-15")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"passed over the corrupt checkpoint {newest}: {name} ")
    assert not newest.exists()
    assert (run_folder / "damaged-checkpoint-20").is_dir()


def flip(path, place):
    """Turns one bit of one byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [-1, -200], ids=["last", "inside"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "training_args.bin"])
def test_a_flipped_bit_is_noticed(run_folder, name, place):
    newest = run_folder / "checkpoint-20"
    saved = json.loads((newest / "checkpoint_files.json").read_text())[name]
    content = (newest / name).read_bytes()
    assert saved == {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    flip(newest / name, place)
    now = f"{zlib.crc32((newest / name).read_bytes()):08x}"
    fault = f"{name} has the checksum {now} instead of {saved['crc32']}: its contents have changed"
    assert checkpoints.why_corrupt(newest) == fault
    with pytest.raises(BadInputError) as refused:
        make_checkpointing(run_folder, **SAVING).train(resume_from_checkpoint=str(newest))
    assert str(refused.value) == (
        f"resume_from_checkpoint is '{newest}', but {fault}; the newest complete one is "
        f"{run_folder / 'checkpoint-15'}"
    )
    assert checkpoints.last_complete(run_folder) == str(run_folder / "checkpoint-15")


def test_checkpoints_of_earlier_releases_note_sizes_alone_and_go_on(run_folder, finished):
    for checkpoint in run_folder.glob("checkpoint-*"):
        path = checkpoint / "checkpoint_files.json"
        sizes = {name: saved["bytes"] for name, saved in json.loads(path.read_text()).items()}
        path.write_text(json.dumps(sizes))
    truncate(run_folder / "checkpoint-20" / "model.safetensors")
    resumed = make_checkpointing(run_folder, **SAVING)
    assert_same(trained(resumed, resume_from_checkpoint=True), finished[1])
    assert resumed._initial_global_step == 15


def test_resuming_goes_on_from_the_last_complete_checkpoint(run_folder, finished):
    truncate(run_folder / "checkpoint-20" / "optimizer.pt")
    garble(run_folder / "checkpoint-15" / "model.safetensors")
    resumed = make_checkpointing(run_folder, **SAVING)
    assert_same(trained(resumed, resume_from_checkpoint=True), finished[1])
    assert resumed._initial_global_step == 10
    assert checkpoints.why_corrupt(str(run_folder / "checkpoint-20")) is None


def test_without_a_complete_checkpoint_the_trainer_refuses(run_folder):
    for step in (5, 10, 15, 20):
        (run_folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        make_checkpointing(run_folder, **SAVING).train(resume_from_checkpoint=True)
    assert checkpoints.last_complete(str(run_folder / "nowhere")) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("model.safetensors", "model.safetensors is missing"),
        ("scheduler.pt", "scheduler.pt is missing"),
        ("rng_state.pth", "rng_state.pth is missing"),
        ("trainer_state.json", "trainer_state.json is missing"),
    ],
)
def test_checkpoints_of_the_stock_trainer_are_judged_by_content(tmp_path, name, fault):
    stock_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert checkpoints.why_corrupt(str(checkpoint)) is None
    (checkpoint / name).rename(tmp_path / "away")
    assert checkpoints.why_corrupt(str(checkpoint)) == fault
    (tmp_path / "away").rename(checkpoint / name)
    truncate(checkpoint / name)
    assert checkpoints.why_corrupt(str(checkpoint)).startswith(f"{name} cannot be read (")


def test_a_disk_that_is_full_leaves_the_older_checkpoints_as_they_were(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                monkeypatch.setattr(LPWDTrainer, "_save_scaler", fail)

    with pytest.raises(OSError, match="No space left"):
        make_checkpointing(tmp_path, [FillDisk()], **SAVING, save_total_limit=1).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    assert checkpoints.why_corrupt(str(tmp_path / "checkpoint-5")) is None


def test_what_a_killed_run_left_unfinished_is_removed_at_the_start(run_folder):
    (run_folder / checkpoints.UNFINISHED / "checkpoint-20").mkdir(parents=True)
    make_checkpointing(run_folder, max_steps=1).train()
    assert not (run_folder / checkpoints.UNFINISHED).exists()


class KilledError(BaseException):
    """In the place of SIGKILL."""


def killed_while_it_replaces(folder, monkeypatch, step=20):
    """Leaves `folder` as SIGKILL does between the two renames that replace its checkpoint of a step."""
    checkpoint = folder / f"checkpoint-{step}"
    rename = Path.rename

    def rename_until_killed(path, target):
        if path.parent.name == checkpoints.UNFINISHED and path.name.startswith("checkpoint-"):
            raise KilledError
        return rename(path, target)

    written = folder / checkpoints.UNFINISHED / checkpoint.name
    shutil.rmtree(written.parent, ignore_errors=True)
    shutil.copytree(checkpoint, written)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_until_killed)
        with pytest.raises(KilledError):
            checkpoints.finish(written, checkpoint)
    assert not checkpoint.exists()


def test_a_checkpoint_that_was_about_to_be_replaced_is_not_lost(run_folder, monkeypatch):
    killed_while_it_replaces(run_folder, monkeypatch)
    before = (run_folder / "checkpoint-15" / "model.safetensors").read_bytes()
    trainer = make_checkpointing(run_folder, **SAVING)
    assert trainer.last_complete_checkpoint() == str(run_folder / "checkpoint-20")
    assert checkpoints.why_corrupt(str(run_folder / "checkpoint-20")) is None
    assert (run_folder / "checkpoint-15" / "model.safetensors").read_bytes() == before
    killed_while_it_replaces(run_folder, monkeypatch)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 20
    assert not (run_folder / checkpoints.UNFINISHED).exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_named_explicitly_it_is_not_lost_either(run_folder, finished, tmp_path, monkeypatch, elsewhere):
    """Also where the run goes on in another folder, and a relative name ends in a slash."""
    killed_while_it_replaces(run_folder, monkeypatch, step=10)
    monkeypatch.chdir(tmp_path)
    resumed = make_checkpointing(tmp_path / "other" if elsewhere else run_folder, **SAVING)
    assert_same(trained(resumed, resume_from_checkpoint="run/checkpoint-10/"), finished[1])
    assert resumed._initial_global_step == 10
    assert checkpoints.why_corrupt(str(run_folder / "checkpoint-10")) is None


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_damaged_one_named_explicitly_is_refused_and_a_complete_one_named(run_folder):
    truncate(run_folder / "checkpoint-20" / "optimizer.pt")
    garble(run_folder / "checkpoint-15" / "model.safetensors")
    before = contents(run_folder)
    size = (run_folder / "checkpoint-20" / "optimizer.pt").stat().st_size
    for name, fault in (
        ("checkpoint-20", f"optimizer.pt has {size} bytes instead of {size + 7}"),
        ("checkpoint-7", "no checkpoint is there"),
        ("", "trainer_state.json is missing"),
    ):
        with pytest.raises(BadInputError) as error:
            make_checkpointing(run_folder, **SAVING).train(resume_from_checkpoint=str(run_folder / name))
        assert str(error.value) == (
            f"resume_from_checkpoint is {str(run_folder / name)!r}, but {fault}; "
            f"the newest complete one is {run_folder / 'checkpoint-10'}"
        )
    assert contents(run_folder) == before
    for step in (5, 10):
        (run_folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    with pytest.raises(BadInputError, match=r"but scheduler\.pt is missing; its folder has no complete one$"):
        make_checkpointing(run_folder, **SAVING).train(
            resume_from_checkpoint=str(run_folder / "checkpoint-10")
        )


def test_a_damaged_or_replaced_checkpoint_is_not_put_back(run_folder, monkeypatch):
    killed_while_it_replaces(run_folder, monkeypatch)
    replaced = run_folder / checkpoints.UNFINISHED / "replaced" / "checkpoint-20"
    truncate(replaced / "optimizer.pt")
    assert checkpoints.last_complete(str(run_folder)) == str(run_folder / "checkpoint-15")
    (run_folder / checkpoints.UNFINISHED / "replaced").rename(run_folder / checkpoints.UNFINISHED / "kept")
    shutil.copytree(
        run_folder / "checkpoint-15", run_folder / checkpoints.UNFINISHED / "replaced" / "checkpoint-15"
    )
    garble(run_folder / "checkpoint-15" / "model.safetensors")
    assert checkpoints.last_complete(str(run_folder)) == str(run_folder / "checkpoint-10")


def test_the_state_names_the_best_checkpoint_where_it_is(tmp_path):
    flags = {"eval_strategy": "steps", "eval_steps": 5, "metric_for_best_model": "loss"}
    make_checkpointing(tmp_path, **SAVING, **flags, load_best_model_at_end=True).train()
    for step in (5, 10, 15, 20):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        best = tmp_path / f"checkpoint-{state['best_global_step']}"
        assert state["best_model_checkpoint"] == str(best)
        assert best.is_dir()


@pytest.mark.parametrize("named", [False, True])
def test_an_optimizer_that_starts_afresh_is_said(tmp_path, caplog, named):
    """Other weights came out of it without a word."""
    flags = {**SAVING, "save_only_model": True, "max_steps": 10}
    trained(make_checkpointing(tmp_path, **flags))
    checkpoint = tmp_path / "checkpoint-5"
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert "no state of the optimizer" not in caplog.text
    trained(make_checkpointing(tmp_path, **flags), resume_from_checkpoint=str(checkpoint) if named else True)
    assert (
        f"{checkpoint} has no state of the optimizer (save_only_model), which starts afresh: the weights "
        "will not be those of a run without interruption"
    ) in caplog.messages


@pytest.mark.parametrize("save_steps", [1, 3])
def test_resumed_from_its_last_checkpoint_it_takes_no_further_step(tmp_path, save_steps):
    """An epoch has three steps: step 4 is the first of the second one."""
    flags = {**SAVING, "max_steps": 4, "save_steps": save_steps}
    whole = trained(make_checkpointing(tmp_path, **flags))
    resumed = make_checkpointing(tmp_path, **flags)
    assert_same(trained(resumed, resume_from_checkpoint=True), whole)
    assert resumed.state.global_step == 4


@pytest.mark.parametrize(
    ("step", "strategy"), [(4, "steps"), (4, "epoch"), (6, "epoch"), (6, "no"), (20, "steps"), (20, "epoch")]
)
def test_stopped_by_a_signal_it_resumes_exactly(tmp_path, step, strategy):
    """Step 4 is in the middle of an epoch, 6 an epoch's last one, 20 the run's."""
    flags = {"save_strategy": strategy, "save_steps": 4, "eval_strategy": strategy, "eval_steps": 4}
    flags |= {"load_best_model_at_end": strategy != "no", "metric_for_best_model": "loss", "warmup_steps": 1}
    whole_run = make_checkpointing(tmp_path / "whole", **flags)
    whole = trained(whole_run)
    stop = StopOnSignal()
    stopped = make_checkpointing(tmp_path / "run", [Signal(step, signal.SIGTERM), stop], **flags)
    with stop, pytest.raises(Interrupted) as end:
        stopped.train()
    assert (end.value.code, end.value.checkpoint) == (143, str(tmp_path / "run" / f"checkpoint-{step}"))
    resumed = make_checkpointing(tmp_path / "run", **flags)
    assert_same(trained(resumed, resume_from_checkpoint=True), whole)
    losses = [
        [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (whole_run, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in the foreground; what a shell starts in the background ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(tmp_path):
    stop = StopOnSignal()
    callbacks = [Signal(4, signal.SIGTERM), Signal(4, signal.SIGTERM), Signal(4, signal.SIGINT), stop]
    trainer = make_checkpointing(tmp_path, callbacks, **SAVING)
    with stop, pytest.raises(Interrupted) as end:
        trainer.train()
    assert (end.value.code, end.value.checkpoint) == (130, None)
    assert not list(tmp_path.iterdir())
