"""Runs of `hf-lpwd train` that are killed or stopped, and resumed: they end as uninterrupted runs do."""

import random
import signal

import pytest
from killed_runs import FLAGS, Runs
from processes import in_two_processes
from small_trainers import TIMINGS

from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    server = Runs(tmp_path_factory.mktemp("runs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(runs):
    """Timing -> name of a run that was left alone, and its seconds."""
    done = {}

    def run(timing):
        if timing not in done:
            code, _, log, seconds = runs(f"whole-{timing}", "--decay_timing", timing)
            assert code == 0, log
            done[timing] = f"whole-{timing}", seconds
        return done[timing]

    return run


@pytest.mark.parametrize("timing", TIMINGS)
def test_killed_twice_and_resumed_it_is_as_if_never_killed(runs, whole, timing):
    flags = ["--decay_timing", timing]
    other, seconds = whole(timing)
    code, unfinished, _, _ = runs(timing, *flags, end=signal.SIGKILL, finishing=3)
    assert (code, unfinished) == (-signal.SIGKILL, True)
    runs.assert_whole(timing)
    assert runs.resume(timing, *flags, end=signal.SIGKILL, after=0.6 * seconds)[0] == -signal.SIGKILL
    runs.assert_whole(timing)
    code, unfinished, log, _ = runs.resume(timing, *flags)
    assert (code, unfinished) == (0, False), log
    runs.assert_same(timing, other)


@pytest.mark.slow
@pytest.mark.parametrize("timing", TIMINGS)
def test_twenty_kills_at_random_moments(runs, whole, timing):
    other, seconds = whole(timing)
    flags = ["--decay_timing", timing]
    draw = random.Random(timing)
    during_a_write = 0
    for kill in range(20):
        name = f"{timing}-{kill}"
        moment = (
            {"after": draw.uniform(0.0, seconds)}
            if kill % 2
            else {"write": draw.randint(1, 13), "delay": draw.uniform(0.0, 0.015)}
        )
        _, unfinished, _, _ = runs(name, *flags, end=signal.SIGKILL, **moment)
        during_a_write += unfinished
        runs.assert_whole(name)
        code, _, log, _ = runs.resume(name, *flags)
        assert code == 0, log
        runs.assert_same(name, other)
    assert during_a_write >= 3
    print(f"{timing}: 20 of 20, {during_a_write} while a checkpoint was written")


def test_killed_before_the_results_are_written_nothing_is_trained_again(runs, whole):
    other, _ = whole("pwd")
    assert runs("results", "--decay_timing", "pwd")[0] == 0
    for name in ("model.safetensors", "test_results.json", "README.md", "trainer_state.json"):
        (runs.folder / "results" / name).unlink()
    code, _, log, _ = runs.resume("results", "--decay_timing", "pwd")
    assert (code, "  loss " in log) == (0, False), log
    runs.assert_same("results", other)


def test_before_the_first_checkpoint_a_resumed_run_starts_over(runs, whole):
    code, _, log, _ = runs.resume("early")
    assert code == 0
    assert "early has no complete checkpoint: the run starts from the beginning" in log
    runs.assert_same("early", whole("pwd")[0])


@pytest.mark.parametrize(
    ("name", "signum", "order"),
    [
        ("ctrl-c", signal.SIGINT, {}),
        ("terminated", signal.SIGTERM, {}),
        # SLURM's goes to the workers of the data loaders too.
        pytest.param(
            "slurm", signal.SIGTERM, {"group": True, "workers": "1"}, marks=pytest.mark.slow, id="slurm"
        ),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(runs, whole, name, signum, order):
    order = dict(order)
    workers = ["--dataloader_num_workers", order.pop("workers", "0")]
    code, unfinished, log, _ = runs(name, *workers, end=signum, write=4, delay=0.0, **order)
    assert (code, unfinished) == (128 + signum, False), log
    folder = runs.folder / name
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert log.splitlines()[-1] == (
        f"hf-lpwd train: stopped by {signum.name}, saved in {last}; to go on: the same command with "
        "--resume_from_checkpoint True"
    )
    assert "Traceback" not in log
    assert why_corrupt(str(last)) is None
    assert not {"model.safetensors", "eval_results.json", "README.md"} & {
        path.name for path in folder.iterdir()
    }
    assert runs.resume(name, *workers)[0] == 0
    runs.assert_same(name, whole("pwd")[0])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_is_one_line(tmp_path, signum, monkeypatch, capfd):
    monkeypatch.setattr("hf_lpwd.vision.prepare.load_splits", lambda *_, **__: signal.raise_signal(signum))
    before = signal.signal(signum, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            main([*FLAGS, "--output_dir", str(tmp_path / "out")])
        assert signal.getsignal(signum) == signal.default_int_handler
    finally:
        signal.signal(signum, before)
    assert end.value.code == 128 + signum
    assert capfd.readouterr().err == (
        f"hf-lpwd train: stopped by {signum.name}; to go on: the same command with "
        "--resume_from_checkpoint True\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer_schedule", "uniform"], "its layer_schedule is 'linear', now 'uniform'"),
        (["--decay_timing", "rwd"], "its decay_timing is 'pwd', now 'rwd'"),
        (["--model_type", "deit"], "its model_type is 'vit', now 'deit'"),
        (["--dataset_name", "beans"], "its dataset_name is None, now 'beans'"),
        (
            ["--num_train_epochs", "3"],
            "its num_train_epochs is 2.0, now 3.0: only a constant learning rate can go",
        ),
    ],
)
def test_resuming_as_another_run_is_refused(runs, whole, flags, message):
    name, _ = whole("pwd")
    before = (runs.folder / name / "model.safetensors").read_bytes()
    code, _, log, _ = runs.resume(name, *flags)
    assert code == 2
    assert message in log
    assert log.count("\n") == 1
    assert (runs.folder / name / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(tmp_path):
    """The signal reaches one of them; the checkpoint is then damaged, and both pass over it."""
    assert in_two_processes("stopped_run.py", tmp_path).count("same\n") == 2
