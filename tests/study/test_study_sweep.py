"""Each run once: records, failures, locks; on scikit-learn's digits where a run is really made."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from hf_lpwd.cli import main
from hf_lpwd.study import run as study_run
from hf_lpwd.study import sweep as sweep_module
from hf_lpwd.study.comparison import correct_images
from hf_lpwd.study.config import read_study
from hf_lpwd.study.record import Record
from hf_lpwd.study.records import load_records
from hf_lpwd.study.sweep import do_run, sweep

SHORT = "train: {max_steps: 4, eval_strategy: steps, eval_steps: 2, save_steps: 2, logging_steps: 1, "


@pytest.fixture
def specs(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("grid: {decay_timing: [wd, pwd], seed: [0, 1]}")
    return read_study(str(path)).runs


@pytest.fixture
def computed(monkeypatch):
    """Ids of the runs computed, in order; what is computed is no training, and fails with seed 1 and pwd."""
    ids = []

    def compute(spec, folder):
        ids.append(spec.id)
        record = {"id": spec.id, "settings": {"seed": spec.settings["seed"]}, "method": "m"}
        record["times"] = {"seconds": 1.0}
        if (spec.settings["decay_timing"], spec.settings["seed"]) == ("pwd", 1):
            return {**record, "status": "failed", "error": {"type": "ValueError", "message": "no"}}
        metrics = {"validation": {"accuracy": 0.5, "loss": float("nan")}}
        return {**record, "status": "completed", "metrics": metrics}

    monkeypatch.setattr(study_run, "in_one_thread", compute)
    return ids


def test_each_run_once_and_one_record_each(specs, computed, tmp_path):
    lines = []
    assert sweep(specs, str(tmp_path / "runs"), report=lines.append) == {
        "completed": 3,
        "failed": 1,
        "here": 4,
    }
    assert computed == [spec.id for spec in specs]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        ".locks",
        *(f"{spec.id}.json" for spec in specs),
    }
    assert [line.split("]")[0] for line in lines] == [
        "4 runs, 1 side by side",
        "[1/4",
        "[2/4",
        "[3/4",
        "[4/4",
    ]
    assert lines[4] == "[4/4] m seed=1: FAILED, ValueError: no (1 s); about 0 s left"
    # Nothing is done again, not even what failed.
    assert sweep(specs, str(tmp_path / "runs"), report=lines.append) == {"completed": 3, "failed": 1}
    assert len(computed) == 4
    assert lines[5] == "4 runs, 1 side by side; 4 have a record already"


def test_what_failed_is_done_again_where_asked_for(specs, computed, tmp_path):
    lines = []
    sweep(specs, str(tmp_path))
    sweep(specs, str(tmp_path), retry_failed=True, report=lines.append)
    assert computed[4:] == [spec.id for spec in specs if spec.settings["seed"] == 1][1:]
    assert lines[0] == "1 run that failed is done again"


def test_only_what_is_missing_is_done(specs, computed, tmp_path):
    sweep(specs, str(tmp_path))
    (tmp_path / f"{specs[1].id}.json").unlink()
    sweep(specs, str(tmp_path))
    assert computed == [*(spec.id for spec in specs), specs[1].id]


def test_nan_is_null_in_a_record(specs, computed, tmp_path):
    do_run(specs[0], str(tmp_path))
    record = json.loads((tmp_path / f"{specs[0].id}.json").read_text(), parse_constant=pytest.fail)
    assert record["metrics"]["validation"]["loss"] is None


def test_a_run_that_another_sweep_is_at_is_waited_for(specs, computed, tmp_path, monkeypatch):
    """Another process holds the lock of the first run for a while, and then dies without a record."""
    monkeypatch.setattr(sweep_module, "_POLL_SECONDS", 0.01)
    (tmp_path / ".locks").mkdir()
    held, release = threading.Event(), threading.Event()

    def hold():
        with FileLock(tmp_path / ".locks" / specs[0].id):
            held.set()
            release.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()

    def report(line):
        if line.startswith("[3/4]"):
            release.set()

    assert do_run(specs[0], str(tmp_path)) is None
    assert computed == []
    sweep(specs, str(tmp_path), report=report)
    other.join()
    assert computed == [spec.id for spec in (*specs[1:], specs[0])]


def test_a_run_whose_process_dies_again_and_again_fails(specs, tmp_path, monkeypatch, computed):
    (tmp_path / ".locks").mkdir()
    deaths = sweep_module.Counter()
    for _ in range(sweep_module.MAX_DEATHS):
        assert not (tmp_path / f"{specs[0].id}.json").exists()
        (tmp_path / ".locks" / f"{specs[0].id}.busy").touch()
        sweep_module._give_up_on_deadly(tmp_path, specs, deaths)
    record = json.loads((tmp_path / f"{specs[0].id}.json").read_text())
    assert (record["status"], record["error"]["type"]) == ("failed", "WorkerDied")
    assert deaths == {specs[0].id: 2}


def record_files(folder):
    return sorted(path for path in folder.glob("*.json") if path.name != "plan.json")


def without_times(folder):
    records = [json.loads(path.read_text()) for path in record_files(folder)]
    return [{key: value for key, value in record.items() if key != "times"} for record in records]


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    """Records of six methods with two learning rates, one of them 0, by method and learning rate."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(
        SHORT + "weight_decay: 0.5, max_train_samples: 300}\n"
        "grid: {decay_timing: [wd], layer_schedule: [linear], learning_rate: [0, 1e-2]}\n"
        "baselines: [linear_budget, shuffled_rates, layer_wise_lr, l2_sp, cautious_decay]\n"
        "paper_metric: true\n"
    )
    argv = ["sweep", "--config", str(folder / "study.yaml"), "--runs", str(folder / "runs"), "--n_jobs", "1"]
    assert main(argv) == 0
    records = [json.loads(path.read_text()) for path in record_files(folder / "runs")]
    return {(record["method"], record["settings"]["learning_rate"]): record for record in records}


def test_what_a_record_holds(digits_runs):
    record = digits_runs["wd linear", 0.01]
    assert set(record) == {
        "format", "id", "settings", "method", "task", "versions", "environment", "status", "metrics",
        "epochs", "test_accuracy_after_epochs", "training", "weight_norms", "layers", "opposing_penalty",
        "pairing", "times", "data", "correct", "weight_decay",
    }  # fmt: skip
    read = Record.model_validate(record)
    assert read.outcome == "completed"
    assert record["data"]["sizes"] == {"train": 300, "validation": 216, "test": 359}
    assert correct_images(read).mean() == pytest.approx(record["metrics"]["test"]["accuracy"])
    assert record["environment"]["threads"] == 1
    assert record["environment"]["devices"] == 1
    assert re.fullmatch(
        "[0-9a-f]{12}(-dirty)?|.*-g[0-9a-f]{12}(-dirty)?|version .*", record["environment"]["commit"]
    )
    assert list(record["metrics"]) == ["validation", "test"]
    assert record["metrics"]["validation"]["accuracy"] == max(e["accuracy"] for e in record["epochs"])
    assert [epoch["step"] for epoch in record["epochs"]] == [2, 4]
    assert [entry["step"] for entry in record["training"]] == [1, 2, 3, 4]
    assert record["weight_norms"]["steps"] == [1, 2, 3, 4]
    # The learning rate begins at 0, and with it the decay.
    assert record["opposing_penalty"]["steps"] == [2, 3, 4]
    layers = [f"layer_{i}" for i in range(6)]
    assert list(record["weight_norms"]["norms"]) == layers
    assert [layer["rate"] for layer in record["layers"]] == pytest.approx([0.1 * i for i in range(6)])
    # Layer 0 does not decay.
    assert list(record["opposing_penalty"]["rates"]) == ["all", *layers[1:]]
    assert len(record["test_accuracy_after_epochs"]) == 1


def test_seeds_are_paired(digits_runs):
    """At a learning rate of 0 nothing moves, so equal losses mean equal weights, batches and augmentation."""
    still = [record for (_, rate), record in digits_runs.items() if rate == 0.0]
    assert len(still) == 6
    assert len({json.dumps(record["training"]) for record in still}) == 1
    assert len({json.dumps(record["pairing"]) for record in digits_runs.values()}) == 1
    moving = {json.dumps(r["training"]) for (_, rate), r in digits_runs.items() if rate != 0.0}
    assert len(moving) == 6


def test_rates_of_the_peers(digits_runs):
    linear, budget, shuffled, layer_wise = (
        [layer["rate"] for layer in digits_runs[method, 0.01]["layers"]]
        for method in ("wd linear", "linear budget", "shuffled rates", "layer wise lr")
    )
    decayed = [layer["decayed"] for layer in digits_runs["wd linear", 0.01]["layers"]]
    mean = sum(rate * count for rate, count in zip(linear, decayed, strict=True)) / sum(decayed)
    assert budget == pytest.approx([mean] * 6)
    assert sorted(shuffled) == pytest.approx(linear)
    assert shuffled != linear
    assert layer_wise == [0.5] * 6


def test_a_mistyped_dataset_is_said_once_before_the_runs(tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(SHORT + "dataset_name: ./nowhere}\ngrid: {model: [{model_type: vit}], seed: [0, 1]}\n")
    assert main(["study", "run", str(study), "--runs", str(tmp_path / "runs"), "--n_jobs", "1"]) == 2
    error = capsys.readouterr().err
    assert "./nowhere" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_diverges_leaves_a_record_with_its_last_evaluation(tmp_path):
    (tmp_path / "study.yaml").write_text(
        SHORT
        + "weight_decay: 0, optim: sgd, max_grad_norm: 0, lr_scheduler_type: constant, warmup_steps: 0}\n"
        "grid: {learning_rate: [10000]}\n"
    )
    (spec,) = read_study(str(tmp_path / "study.yaml")).runs
    do_run(spec, str(tmp_path))
    (record,) = load_records(str(tmp_path))
    assert (record.status, record.outcome) == ("diverged", "diverged")
    assert "training diverged" in record.error.message
    assert record.score("test") == 0.1
    assert not list((tmp_path / ".work").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n_jobs", "0"], "n_jobs must not be 0"),
        (["--gpus_per_run", "1"], "gpus_per_run is Ray's"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
        (["--backend", "dask"], "invalid choice: 'dask'"),
    ],
)
def test_bad_input_is_one_line(flags, message, capsys, specs, tmp_path):
    argv = ["sweep", "--config", str(tmp_path / "study.yaml"), *flags]
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert err.startswith("hf-lpwd sweep: error: ")
    assert err.count("\n") == 1


DIGITS = SHORT + "max_train_samples: 300}\ngrid: {decay_timing: [wd, pwd], seed: [0, 1, 2]}\n"


def command(study, runs, *flags):
    return [sys.executable, "-m", "hf_lpwd", "sweep", "--config", str(study), "--runs", str(runs), *flags]


@pytest.mark.slow
def test_killed_and_resumed_or_shared_the_records_are_the_same(tmp_path):
    """One sweep in one go, one killed twice, two at once: the same records apart from times."""
    study = tmp_path / "study.yaml"
    study.write_text(DIGITS)
    subprocess.run(command(study, tmp_path / "plain", "--n_jobs", "2"), check=True, timeout=1200)
    expected = without_times(tmp_path / "plain")
    assert len(expected) == 6

    killed = tmp_path / "killed"
    for number in (1, 3):
        process = subprocess.Popen(command(study, killed, "--n_jobs", "2"), start_new_session=True)
        while len(record_files(killed)) < number:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 3 <= len(record_files(killed)) < 6
    subprocess.run(command(study, killed, "--n_jobs", "2"), check=True, timeout=1200)
    assert without_times(killed) == expected

    shared = tmp_path / "shared"
    both = [
        subprocess.Popen(command(study, shared, "--n_jobs", "1"), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=1200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    # Every run was done by one of the two, and each did some.
    done = [int(output.split()[0]) for output in outputs]
    assert sum(done) == 6
    assert 0 not in done
    assert without_times(shared) == expected


@pytest.mark.slow
def test_workers_end_with_a_killed_sweep_and_leave_nothing(tmp_path):
    """The main process alone is killed; no worker goes on, and no folder of a run stays anywhere."""
    study = tmp_path / "study.yaml"
    study.write_text(
        DIGITS.replace("max_steps: 4", "max_steps: 2000").replace("eval_steps: 2", "eval_steps: 1000")
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(command(study, tmp_path / "runs", "--n_jobs", "2"), env=environment)
    work = tmp_path / "runs" / ".work"
    while not list(work.glob("*/run")):
        assert process.poll() is None
        time.sleep(0.1)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not list(work.iterdir())
    assert not list((tmp_path / "temporary").glob("hf-lpwd-*"))


def children(pid):
    """Process ids of the children of a process, and of theirs."""
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_on_ray_the_records_are_the_same(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(DIGITS.replace("[0, 1, 2]", "[0]"))
    for backend in ("loky", "ray"):
        argv = command(study, tmp_path / backend, "--n_jobs", "2", "--backend", backend)
        subprocess.run(argv, check=True, timeout=1200)
    assert without_times(tmp_path / "ray") == without_times(tmp_path / "loky")
    assert len(without_times(tmp_path / "ray")) == 2
