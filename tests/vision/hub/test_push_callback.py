import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest
import torch
from hub_server import READ_TOKEN, SILENT, WRITE_TOKEN, Failure, Hub, Repo, use_here
from small_runs import PUBLISHED, SMALL, on_the_hub, train
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_lpwd.cli import main
from hf_lpwd.vision.hub.push import files_to_push
from hf_lpwd.vision.hub.push_callback import PushCallback

# huggingface_hub 2.4 sends LFS files with an argument that its HTTP client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

STRATEGIES = {
    "end": set(),
    "every_save": set(),
    "checkpoint": {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"},
    "all_checkpoints": {"checkpoint-2/optimizer.pt", "checkpoint-4/optimizer.pt"},
}


@pytest.mark.parametrize(("strategy", "states"), STRATEGIES.items())
def test_push_during_training(hub, tmp_path, capsys, strategy, states):
    flags = ["--push_to_hub", "--hub_model_id", "user/digits", "--hub_always_push", "True"]
    assert train(tmp_path / "out", *flags, "--hub_strategy", strategy, "--hub_private_repo", "True") == 0
    repo = hub.repos["user/digits"]
    files = repo.files("main")
    assert repo.private
    assert PUBLISHED | states <= set(files)
    assert files | on_the_hub(tmp_path / "out") == files
    assert {name.split("/")[0] for name in set(files) - PUBLISHED} == {name.split("/")[0] for name in states}
    assert len(repo.commits) - 1 == {"end": 1, "every_save": 3}.get(strategy, 3)
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"pushed: {hub.endpoint}/user/digits/commit/{repo.refs['main']}"
    )


@pytest.mark.parametrize("token", [READ_TOKEN, None])
def test_a_run_outlives_its_failed_pushes(hub, tmp_path, capsys, monkeypatch, token):
    use_here(hub, monkeypatch, token)
    folder = tmp_path / "my run"
    assert train(folder, "--push_to_hub", "--hub_model_id", "user/digits") == 1
    why = (
        "this token has no write permission there (403: no right to write)"
        if token
        else "no token, or a wrong one: `hf auth login` (401: no right to write)"
    )
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hf-lpwd train: error: not pushed to user/digits: {why}; the run is saved, and this uploads it: "
        f"hf-lpwd push '{folder}' user/digits"
    )
    assert set(files_to_push(folder)) == PUBLISHED
    use_here(hub, monkeypatch)
    assert main(["push", str(folder), "user/digits"]) == 0
    assert set(hub.repos["user/digits"].files("main")) == PUBLISHED


def test_a_run_outlives_a_hub_that_goes_away(tmp_path, capsys, monkeypatch):
    with Hub() as gone:
        use_here(gone, monkeypatch)
    assert train(tmp_path / "out", "--push_to_hub") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "hf-lpwd train: error: not pushed to out: the connection to the Hub failed (ConnectError); the run "
        f"is saved, and this uploads it: hf-lpwd push {tmp_path / 'out'} out"
    )
    assert set(files_to_push(tmp_path / "out")) == PUBLISHED


def test_a_push_that_fails_once_is_made_up_for_by_the_next(hub, tmp_path, caplog):
    hub.failures.append(Failure("/commit/", 429, times=1))
    assert train(tmp_path / "out", "--push_to_hub", "--hub_model_id", "user/digits") == 0
    assert set(hub.repos["user/digits"].files("main")) == PUBLISHED


def test_a_hub_that_stops_answering_holds_no_run(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_lpwd.vision.hub.patience.PATIENCE", 0.3)
    hub.failures.append(Failure("/commit/", SILENT))
    assert train(tmp_path / "out", "--push_to_hub", "--hub_model_id", "user/digits") == 1
    assert "the Hub was given up: no complete answer within 0.3 s" in capsys.readouterr().err.splitlines()[-1]
    assert set(files_to_push(tmp_path / "out")) == PUBLISHED


def test_a_push_to_a_branch(hub, tmp_path):
    flags = ["--push_to_hub", "--hub_model_id", "user/digits", "--hub_revision", "v1"]
    assert train(tmp_path / "out", *flags) == 0
    assert set(hub.repos["user/digits"].files("v1")) == PUBLISHED
    assert hub.repos["user/digits"].files("main") == {}


def test_a_save_during_an_upload_waits_only_where_that_is_asked_for(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(PushCallback, "_push", lambda self, checkpoint, message: done.append(checkpoint.name))
    for always, pushed in ((False, []), (True, ["checkpoint-8"])):
        args = TrainingArguments(str(tmp_path), hub_strategy="every_save", hub_always_push=always)
        callback = PushCallback(args)
        callback.last = Future()
        callback.on_save(args, TrainerState(global_step=8, is_world_process_zero=True), TrainerControl())
        callback.thread.shutdown()
        assert done == pushed


def test_a_name_that_cannot_be_pushed_to_is_refused_at_the_start(tmp_path, capsys):
    assert train(tmp_path / "out", "--push_to_hub", "--hub_model_id", "a/b/c") == 2
    assert "'a/b/c'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_planted_token_is_nowhere(hub, tmp_path, capsys, monkeypatch):
    use_here(hub, monkeypatch, None)
    flags = ["--push_to_hub", "--hub_model_id", "user/digits", "--hub_strategy", "all_checkpoints"]
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"hub_token": WRITE_TOKEN, "hub_always_push": True}))
    assert (
        train(
            tmp_path / "out",
            *flags,
            "--config",
            str(config),
            "--token",
            WRITE_TOKEN,
            "--report_to",
            "tensorboard",
        )
        == 0
    )
    hub.failures.append(Failure("/commit/", 500))
    assert main(["push", str(tmp_path / "out"), "user/new", f"--token={WRITE_TOKEN}"]) == 1
    out, err = capsys.readouterr()
    written = {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    sent = {name: content for repo in hub.repos.values() for name, content in repo.files("main").items()}
    secret = WRITE_TOKEN.encode()
    assert [name for name, content in (written | sent).items() if secret in content] == []
    assert WRITE_TOKEN not in out + err
    assert any("events.out" in name for name in written)
    assert "checkpoint-4/optimizer.pt" in sent
    pickled = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert pickled.hub_token is None
    assert pickled.learning_rate == 2e-3


@pytest.mark.parametrize("strategy", ["end", "checkpoint"])
def test_sigterm_during_an_upload_does_not_wait_for_the_hub(hub, tmp_path, strategy):
    """The Hub does not answer to large files, which huggingface_hub sends in threads of its own."""
    hub.failures.append(Failure("PUT /lfs/", SILENT))
    hub.repos["user/digits"] = Repo()
    flags = ["--push_to_hub", "--hub_model_id", "user/digits", "--output_dir", str(tmp_path / "out")]
    flags += ["--hub_strategy", strategy]
    program = (
        "from hf_lpwd.cli import main; from hf_lpwd.vision.hub import patience; patience.GRACE = 1.0\n"
        f"main({['train', *SMALL, *flags]!r})"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], env=hub.environment(tmp_path / "cache"), stderr=subprocess.PIPE
    )
    while not any(request.startswith("PUT /lfs/") for request in hub.requests):
        assert run.poll() is None, run.stderr.read()
        threading.Event().wait(0.1)
    run.send_signal(signal.SIGTERM)
    told = time.monotonic()
    _, error = run.communicate(timeout=60)
    assert run.returncode == 143
    assert time.monotonic() - told < 10
    assert b"hf-lpwd train: stopped by SIGTERM" in error
    saved = {"end": tmp_path / "out", "checkpoint": tmp_path / "out" / "checkpoint-2"}[strategy]
    assert "model.safetensors" in files_to_push(saved)


def test_the_arguments_are_left_as_they_are(tmp_path):
    args = TrainingArguments(str(tmp_path), push_to_hub=True)
    with pytest.raises(ValueError, match="push_to_hub is on"):
        PushCallback(args)
    assert args.push_to_hub
