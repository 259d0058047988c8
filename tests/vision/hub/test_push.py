import hashlib
import json
import subprocess
import sys

import pytest
import torch
from encoded_images import CLASSES, table
from hub_server import (
    CUT,
    DRIP,
    DRIPPING_HEADERS,
    ENDLESS,
    ESCAPES,
    SILENT,
    WRITE_TOKEN,
    Failure,
    Hub,
    Repo,
    use_here,
)
from PIL import Image as PilImage
from processes import HELPERS
from small_runs import PUBLISHED, on_the_hub, train
from transformers import AutoModelForImageClassification

from hf_lpwd.cli import main
from hf_lpwd.vision.hub.push import files_to_push

# huggingface_hub 2.4 sends LFS files with an argument that its HTTP client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


NO_ANSWER = "the Hub was given up: no complete answer within 0.3 s"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, which tests may copy but not change."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train(folder) == 0
    return folder


def copy_of(run, folder):
    """A copy of a run's folder, to be changed."""
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_what_goes_up_and_what_stays(run, capsys):
    assert set(files_to_push(run)) == PUBLISHED
    whole = files_to_push(run, sorted(run.glob("checkpoint-*")))
    assert {name for name in whole if name.startswith("checkpoint-4/")} == {
        f"checkpoint-4/{name}"
        for name in (
            *("config.json", "model.safetensors", "optimizer.pt", "preprocessor_config.json"),
            *("progress_0.json", "rng_state.pth", "scheduler.pt", "trainer_state.json"),
        )
    }
    assert not [name for name in whole if name.endswith("training_args.bin")]
    assert main(["push", str(run), "user/digits", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would upload to user/digits, bytes and path:"
    assert {line.split()[1] for line in lines[1:-1]} == PUBLISHED
    assert lines[-1].split() == [f"{sum((run / name).stat().st_size for name in PUBLISHED):,}", "10", "files"]


def test_push_and_push_again_uploads_nothing_twice(run, hub, tmp_path, capsys):
    assert main(["push", str(run), "user/digits", "--private"]) == 0
    repo = hub.repos["user/digits"]
    assert repo.private
    assert repo.files("main") == on_the_hub(run)
    assert len(hub.uploads()) == 3  # the weights, the curves, the commit
    hub.requests.clear()
    assert main(["push", str(run), "user/digits"]) == 0
    assert hub.uploads() == []
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing to push, all files are there already")
    changed = copy_of(run, tmp_path / "changed")
    (changed / "README.md").write_text("---\ntags: [a]\n---\n# new\n")
    assert main(["push", str(changed), "user/digits"]) == 0
    assert hub.uploads() == ["POST /api/models/user/digits/commit/main"]
    assert len(repo.commits) == 3


def test_a_branch_a_pull_request_and_the_checkpoints(run, hub, tmp_path):
    assert main(["push", str(run), "digits", "--revision", "second", "--include_checkpoints"]) == 0
    repo = hub.repos["user/digits"]
    assert "checkpoint-4/optimizer.pt" in repo.files("second")
    assert repo.files("main") == {}
    assert main(["push", str(run), "user/digits", "--create_pr", "--commit_message", "please"]) == 0
    assert set(repo.files("refs/pr/1")) == PUBLISHED
    assert repo.files("main") == {}
    changed = copy_of(run, tmp_path / "changed")
    (changed / "README.md").write_text("---\ntags: [a]\n---\n# new\n")
    hub.requests.clear()
    assert main(["push", str(changed), "user/digits", "--revision", "refs/pr/1"]) == 0
    assert hub.uploads() == ["POST /api/models/user/digits/commit/refs/pr/1"]
    assert repo.files("refs/pr/1")["README.md"].endswith(b"# new\n")
    assert set(repo.refs) == {"main", "second", "refs/pr/1"}


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (
            "POST /api/repos/create",
            401,
            "no token, or a wrong one: `hf auth login` (401: as asked)",
        ),
        ("POST /api/repos/create", 403, "this token has no write permission there (403: as asked)"),
        ("/commit/", 403, "this token has no write permission there (403: as asked)"),
        ("/commit/", 429, "too many requests: wait some minutes (429: as asked)"),
        ("/preupload/", 500, "the Hub has a fault (500: as asked)"),
        ("PUT /lfs/", 503, "the Hub has a fault (503: as asked)"),
        ("PUT /lfs/", CUT, "the connection to the Hub failed ("),
        ("/commit/", CUT, "the connection to the Hub failed ("),
        ("POST /api/repos/create", SILENT, NO_ANSWER),
        ("/commit/", SILENT, NO_ANSWER),
        ("PUT /lfs/", SILENT, NO_ANSWER),
        ("/preupload/", DRIP, NO_ANSWER),
        ("PUT /lfs/", DRIP, NO_ANSWER),
        ("GET /api/models/user/digits", DRIPPING_HEADERS, NO_ANSWER),
        ("/commit/", DRIPPING_HEADERS, NO_ANSWER),
        ("/commit/", ENDLESS, "the Hub was given up: an answer of more than 1,000,000 bytes"),
    ],
)
def test_a_failed_push_says_why_in_one_line_and_can_be_repeated(
    run, hub, capsys, monkeypatch, request_, status, said
):
    if status < 0:
        monkeypatch.setattr("hf_lpwd.vision.hub.patience.PATIENCE", 0.3)
        monkeypatch.setattr("hf_lpwd.vision.hub.patience.LARGEST_ANSWER", 1_000_000)
    hub.failures.append(Failure(request_, status))
    assert main(["push", str(run), "user/digits", "--token", WRITE_TOKEN]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"hf-lpwd push: error: not pushed to user/digits: {said}")
    assert error.endswith("; the same command tries again")
    assert WRITE_TOKEN not in error
    sent = set(hub.lfs)
    hub.failures.clear()
    hub.requests.clear()
    assert main(["push", str(run), "user/digits"]) == 0
    assert set(hub.repos["user/digits"].files("main")) == PUBLISHED
    assert not [request for request in hub.uploads() if request.removeprefix("PUT /lfs/") in sent]


def test_what_the_hub_says_commands_no_terminal(run, hub, tmp_path, capsys):
    """Not as an error, and not in a process of its own as a warning."""
    hub.failures.append(Failure("/commit/", 403, message=ESCAPES))
    assert main(["push", str(run), "user/digits"]) == 1
    assert "no write permission there (403: ?[31mred?[0m ?]0;title? ?2J)" in capsys.readouterr().err
    hub.failures.clear()
    hub.escapes = True
    answer = push_in_a_process(run, hub, tmp_path / "cache")
    assert answer.returncode == 0, answer.stderr
    assert "Warnings while validating metadata in README.md: - ?[31mred?[0m" in answer.stderr
    assert (answer.stdout + answer.stderr).replace("\n", "").isprintable()


def test_commands_that_are_not_asked_to_upload_do_not(run, hub, tmp_path):
    image = str(tmp_path / "image.png")
    PilImage.new("L", (8, 8), 100).save(image)
    folder = copy_of(run, tmp_path / "run")
    assert main(["predict", str(folder), image]) == 0
    assert main(["space", str(folder)]) == 0
    again = ["--do_predict", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]
    assert main(["train", *again, "--hub_model_id", "user/a", "--disable_tqdm", "True"]) == 0
    assert hub.requests == []


def test_after_a_break_in_the_middle_only_the_rest_is_sent(run, hub):
    (weights, curves) = (
        hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("model.safetensors", "curves.png")
    )
    hub.failures.append(Failure(f"PUT /lfs/{weights}", CUT))
    assert main(["push", str(run), "user/digits"]) == 1
    assert list(hub.lfs) == [curves]
    hub.failures.clear()
    hub.requests.clear()
    assert main(["push", str(run), "user/digits"]) == 0
    assert hub.uploads() == [f"PUT /lfs/{weights}", "POST /api/models/user/digits/commit/main"]


def test_without_network_it_fails_in_one_line(run, monkeypatch, capsys):
    with Hub() as gone:
        use_here(gone, monkeypatch)
    assert main(["push", str(run), "user/digits"]) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["push", str(run), "user/digits"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"hf-lpwd push: error: not pushed to user/digits: {why}; the same command tries again"
        for why in ("the connection to the Hub failed (ConnectError)", "HF_HUB_OFFLINE is set")
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["nowhere", "user/a"],
            "nowhere holds no trained model: name the output_dir of a run of hf-lpwd train",
        ),
        (["RUN", "a/b/c"], "Repo id must be in the form 'repo_name' or 'namespace/repo_name': 'a/b/c'."),
        (
            ["RUN", "a", "--create_pr", "--revision", "b"],
            "create_pr opens a pull request against main, not 'b'",
        ),
        (["RUN", "a", WRITE_TOKEN], "unrecognized arguments: hf_..."),
        (["long" * 100, "user/a"], f"{'long' * 100}"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, hub, capsys, argv, message):
    argv = [str(run) if argument == "RUN" else argument for argument in argv]
    try:
        code = main(["push", *argv])
    except SystemExit as end:
        code = end.code
    (error,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert error.startswith(f"hf-lpwd push: error: {message}")
    assert hub.requests == []


def test_links_are_refused(run, hub, tmp_path, capsys):
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "inner" / "private.txt").write_text("private")
    folder = copy_of(run, tmp_path / "run")
    for name in ("my_results.json", "config.json", "README.md"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / "inner" / "private.txt")
        with pytest.raises(ValueError, match=f"{name} is a link"):
            files_to_push(folder)
        assert main(["push", str(folder), "user/a"]) == 2
        assert "put a copy in its place" in capsys.readouterr().err
        (folder / name).unlink()
        (folder / name).write_bytes((run / name).read_bytes() if (run / name).exists() else b"{}")
    (folder / "checkpoint-1").symlink_to(outside)
    assert main(["push", str(folder), "user/a", "--include_checkpoints"]) == 2
    (folder / "checkpoint-1").unlink()
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "deep").symlink_to(outside / "inner")
    assert main(["push", str(folder), "user/a", "--include_checkpoints"]) == 2
    with pytest.raises(ValueError, match="outside"):
        files_to_push(folder, [outside])
    assert hub.requests == []


def test_code_goes_up_with_a_model_that_names_it_and_else_stays(run, tmp_path):
    folder = copy_of(run, tmp_path / "run")
    (folder / "notes.py").write_text("print(1)")
    assert set(files_to_push(folder)) == PUBLISHED
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "notes.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert set(files_to_push(folder)) == {*PUBLISHED, "notes.py"}


def push_in_a_process(run, hub, cache, **environment):
    """`hf-lpwd push` as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "hf_lpwd", "push", str(run), "user/digits"],
        capture_output=True,
        text=True,
        env={**hub.environment(cache), **environment},
    )


@pytest.mark.slow
def test_large_files_go_by_xet_where_it_is_not_disabled(run, hub, tmp_path):
    """The storage is hf_xet's own, in a folder, which this Hub cannot read: it is told what lies there."""
    hub.xet = tmp_path / "xet"
    for name in ("model.safetensors", "curves.png"):
        hub.lfs[hashlib.sha256((run / name).read_bytes()).hexdigest()] = (run / name).read_bytes()
    answer = push_in_a_process(run, hub, tmp_path / "cache")
    assert answer.returncode == 0, answer.stderr
    assert hub.repos["user/digits"].files("main") == on_the_hub(run)
    assert hub.uploads() == ["POST /api/models/user/digits/commit/main"]
    stored = sum(path.stat().st_size for path in hub.xet.glob("xet/xorbs/xorbs/default.*"))
    assert stored > 0.8 * (run / "model.safetensors").stat().st_size
    hub.requests.clear()
    answer = push_in_a_process(run, hub, tmp_path / "cache")
    assert answer.stdout.startswith("nothing to push, all files are there already")
    assert hub.uploads() == []


@pytest.mark.slow
def test_a_hub_without_xet_says_what_to_set(run, hub, tmp_path):
    answer = push_in_a_process(run, hub, tmp_path / "cache", HF_HUB_DISABLE_XET="0")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "hf-lpwd push: error: not pushed to user/digits: this Hub has no Xet storage: "
        "set HF_HUB_DISABLE_XET=1; the same command tries again"
    )
    assert hub.repos["user/digits"].files("main") == {}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("client error (401 Unauthorized)", "no token, or a wrong one: `hf auth login` (401)"),
        ("client error (403 Forbidden)", "this token has no write permission there (403)"),
        ("client error (429 Too Many Requests)", "too many requests: wait some minutes (429)"),
        ("server error (503 Service Unavailable)", "the Hub has a fault (503)"),
    ],
)
def test_the_errors_of_xet_are_told_apart(run, hub, capsys, monkeypatch, status, said):
    """Their text is that of hf_xet 1.8."""

    def fail(*args, **kwargs):
        raise ConnectionError(f"Network error: Request error: HTTP status {status}, domain: http://a/b")

    monkeypatch.setattr("huggingface_hub._commit_api._upload_files", fail)
    assert main(["push", str(run), "user/digits"]) == 1
    assert f"not pushed to user/digits: {said}; the same" in capsys.readouterr().err


def read_from(hub, cache, folder, offline=False):
    """What a fresh process gets from the Hub, see hub_reader.py."""
    answer = subprocess.run(
        [sys.executable, str(HELPERS / "hub_reader.py"), str(folder)],
        capture_output=True,
        text=True,
        env=hub.environment(cache, offline=offline),
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_a_fresh_process_loads_by_name_and_revision_and_then_from_the_cache(run, hub, tmp_path):
    assert main(["push", str(run), "user/digits", "--private", "--revision", "v1"]) == 0
    hub.repos["datasets/user/images"] = Repo()
    table(CLASSES.names * 20, feature=CLASSES).to_parquet(tmp_path / "train.parquet")
    parquet = {"train-00000-of-00001.parquet": (tmp_path / "train.parquet").read_bytes()}
    hub.repos["datasets/user/images"].commits["0" * 40] = parquet
    read = read_from(hub, tmp_path / "cache", tmp_path / "a")
    model = AutoModelForImageClassification.from_pretrained(run)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert read["logits"] == model(images).logits.tolist()
    assert read["size"] == 8
    assert read["explain"]["code"] == 0
    assert "layer" in read["explain"]["out"]
    assert read["wrong_revision"]["code"] == 2
    assert "user/digits" in read["wrong_revision"]["err"]
    assert (read["train"], read["train_error"]) == (0, "")
    assert "base_model: user/digits" in read["card"]
    assert "- user/images" in read["card"]
    before = len(hub.requests)
    offline = read_from(hub, tmp_path / "cache", tmp_path / "b", offline=True)
    assert len(hub.requests) == before
    assert {key: offline[key] for key in ("logits", "explain", "train", "train_error")} == {
        key: read[key] for key in ("logits", "explain", "train", "train_error")
    }
