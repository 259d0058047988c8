"""The best checkpoint is guarded, and what a resumed run reports is what an uninterrupted one does."""

import json
import os
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest
from killed_runs import reported
from small_trainers import (
    CheckpointingTrainer,
    assert_same,
    make_checkpointing,
    make_trainer,
    stock_trainer,
    trained,
    weights,
)
from transformers import TrainerCallback

from hf_lpwd.checkpoints import mixin
from hf_lpwd.files import remove_leftovers
from hf_lpwd.messages import BadInputError

BEST = {
    "save_strategy": "steps",
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "max_steps": 12,
    "load_best_model_at_end": True,
    "metric_for_best_model": "steps",
    "greater_is_better": False,
    "logging_steps": 3,
    "save_total_limit": 2,
}


class Scored(CheckpointingTrainer):
    """Its second evaluation is the best one."""

    scores = (2.0, 1.0, 3.0, 4.0, 5.0, 6.0)

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        done = self.state.global_step // self.args.eval_steps
        return {**metrics, "eval_steps": self.scores[int(done) - 1]}


make_scored = partial(make_trainer, cls=Scored)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run whose best checkpoint is that of step 8, and the weights of that step."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, trained(make_scored(folder, **BEST))


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def change_state(checkpoint, **values):
    state, sizes = checkpoint / "trainer_state.json", checkpoint / "checkpoint_files.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), **values}))
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), state.name: state.stat().st_size}))


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_the_best_checkpoint_is_found_where_the_folder_has_moved(run, finished, tmp_path):
    """The recorded path is still there, and is not the one that is meant."""
    assert checkpoints(run) == ["checkpoint-12", "checkpoint-8"]
    resumed = make_scored(run, **BEST)
    assert_same(trained(resumed, resume_from_checkpoint=True), finished[1])
    assert resumed.state.best_model_checkpoint == str(run / "checkpoint-8")


@pytest.mark.parametrize("harm", ["missing", "corrupt"])
def test_without_the_best_checkpoint_nothing_is_trained(run, tmp_path, harm):
    away = tmp_path / "away"
    # Also the path that was recorded leads nowhere.
    change_state(run / "checkpoint-12", best_model_checkpoint=str(tmp_path / "gone" / "checkpoint-8"))
    if harm == "missing":
        (run / "checkpoint-8").rename(away)
        fault = "it is missing"
    else:
        (run / "checkpoint-8" / "model.safetensors").unlink()
        fault = "model.safetensors is missing"
    trainer = make_scored(run, **BEST)
    before = weights(trainer.model)
    with pytest.raises(BadInputError) as error:
        trainer.train(resume_from_checkpoint=True)
    assert str(error.value) == (
        f"the checkpoint of step 8, the best so far, cannot be loaded at the end ({run / 'checkpoint-8'}: "
        f"{fault}): put it back, or keep the last weights instead with --load_best_model_at_end False"
    )
    assert_same(weights(trainer.model), before)
    last = make_scored(run, **{**BEST, "load_best_model_at_end": False})
    last.train(resume_from_checkpoint=True)
    assert last.state.global_step == 12
    if harm == "missing":
        away.rename(run / "checkpoint-8")
        make_scored(run, **BEST).train(resume_from_checkpoint=True)


def test_the_best_checkpoint_of_another_run_at_the_recorded_place_is_not_taken(run, tmp_path):
    """A later run of the first one's name has the step too, with other losses."""
    other = (run / "checkpoint-8").rename(tmp_path / "checkpoint-8")
    history = json.loads((other / "trainer_state.json").read_text())["log_history"]
    change_state(other, log_history=[{**history[0], "loss": history[0]["loss"] + 1}, *history[1:]])
    change_state(run / "checkpoint-12", best_model_checkpoint=str(other))
    with pytest.raises(BadInputError, match=r"the checkpoint of step 8, the best so far, .*it is missing\)"):
        make_scored(run, **BEST).train(resume_from_checkpoint=True)


def test_lost_during_training_it_is_an_error_at_the_end(tmp_path):
    class Lose(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                shutil.rmtree(tmp_path / "checkpoint-8")

    with pytest.raises(BadInputError, match=r"the checkpoint of step 8, the best so far, .*it is missing\)"):
        make_scored(tmp_path, [Lose()], **BEST).train()
    assert checkpoints(tmp_path) == ["checkpoint-12"]


def test_an_evaluation_that_is_the_best_is_saved_also_between_saves(tmp_path):
    trainer = make_scored(tmp_path, **{**BEST, "save_steps": 12, "eval_steps": 4})
    found = trained(trainer)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-8")
    assert checkpoints(tmp_path) == ["checkpoint-12", "checkpoint-8"]
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-8"))
    assert_same(found, weights(trainer.model))


def test_a_longer_runs_checkpoint_is_refused(run, tmp_path):
    shorter = {**BEST, "max_steps": 8, "load_best_model_at_end": False}
    trainer = make_scored(tmp_path / "other", **shorter)
    with pytest.raises(BadInputError) as error:
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-12"))
    assert str(error.value) == (
        f"resume_from_checkpoint is '{run}/checkpoint-12', but that is step 12 of 12, and this run ends at "
        "step 8: there is nothing left to train"
    )


class KilledError(BaseException):
    """In the place of SIGKILL."""


def write_everything(trainer, resume=None):
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    trainer.save_metrics("eval", trainer.evaluate())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_everything(make_scored(folder, **BEST))
    return folder


@pytest.mark.parametrize(
    ("name", "call"),
    [
        *(("step", 3), ("step", 8), ("step", 12), ("evaluate", 4)),
        *(("_load_best_model", 1), ("save_model", 1), ("save_state", 1)),
        *(("save_metrics", 1), ("save_metrics", 2)),
    ],
)
def test_killed_anywhere_and_resumed_it_reports_the_same(whole, tmp_path, name, call):
    """Steps 3 and 8 are not those of a log; 12 is the last, and the rest comes after the training."""
    trainer = make_scored(tmp_path, **BEST)
    owner, name = (trainer.create_optimizer(), name) if name == "step" else (trainer, name)
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KilledError
        return original(*args, **kwargs)

    setattr(owner, name, killed)
    with pytest.raises(KilledError):
        write_everything(trainer)
    write_everything(make_scored(tmp_path, **BEST), resume=bool(checkpoints(tmp_path)) or None)
    assert reported(tmp_path) == reported(whole)
    for file in ("model.safetensors", "eval_results.json"):
        assert (tmp_path / file).exists()
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


def test_of_a_stock_trainers_checkpoint_only_what_is_known_is_reported(tmp_path):
    flags = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    stock_trainer(tmp_path, **flags).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-4" / "scheduler.pt").unlink()
    result = make_checkpointing(tmp_path, **flags).train(resume_from_checkpoint=checkpoint)
    assert not {"train_loss", "train_samples_per_second", "train_steps_per_second"} & result.metrics.keys()


@pytest.mark.parametrize("name", ["all_results.json", "train_results.json", "trainer_state.json"])
def test_a_write_that_fails_leaves_the_file_as_it_was(whole, tmp_path, monkeypatch, name):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = (folder / name).read_bytes()
    trainer = make_scored(folder, **BEST)
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    save = trainer.save_state
    if name != "trainer_state.json":
        save = partial(trainer.save_metrics, "train", {"train_loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        save()
    assert (folder / name).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def test_an_empty_file_of_a_killed_run_does_not_stop_the_next_one(tmp_path):
    (tmp_path / "all_results.json").touch()
    make_checkpointing(tmp_path).save_metrics("train", {"train_loss": 1.0, "epoch": 2.0})
    assert json.loads((tmp_path / "all_results.json").read_text()) == {"epoch": 2.0, "train_loss": 1.0}


def test_a_model_half_saved_is_not_in_the_folder(whole, tmp_path, monkeypatch):
    """Killed while it is written, and at each file that gets its name; the weights come last."""
    files = sorted(path.name for path in whole.iterdir() if path.is_file())
    saved = ["config.json", "model.safetensors", "training_args.bin"]
    assert set(saved) < set(files)
    replace, seen = mixin.os.replace, []

    def killed(source, target):
        seen.append(Path(target).name)
        raise KilledError

    monkeypatch.setattr(mixin.os, "replace", killed)
    trainer = make_checkpointing(tmp_path)
    with pytest.raises(KilledError):
        trainer.save_model()
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished"]
    monkeypatch.setattr(mixin.os, "replace", lambda *args: (seen.append(Path(args[1]).name), replace(*args)))
    seen.clear()
    trainer.save_model()
    assert (sorted(seen), seen[-1]) == (saved, "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == saved


def test_leftovers_of_killed_writes_are_removed(tmp_path, monkeypatch):
    def killed(*args):
        raise KilledError

    trainer = make_checkpointing(tmp_path, max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", lambda *args, **kwargs: None)
        with pytest.raises(KilledError):
            trainer.save_metrics("train", {"train_loss": 1.0})
    (tmp_path / ".gitkeep").touch()
    assert len(list(tmp_path.iterdir())) == 2
    trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == [".gitkeep"]
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_every_file_has_the_users_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        trainer = make_checkpointing(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
        write_everything(trainer)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"model.safetensors", "optimizer.pt"} <= {path.name for path in modes}
    assert set(modes.values()) == {0o666 & ~umask}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("checkpoint-*")} == {0o777 & ~umask}
