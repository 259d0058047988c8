import errno
import json
import shutil
import statistics

import pytest
from huggingface_hub import ModelCard
from small_runs import PUBLISHED, train

from hf_lpwd.cli import main
from hf_lpwd.study.over_seeds import over_seeds, read_run
from hf_lpwd.study.stats import mean_interval

# huggingface_hub 2.4 sends LFS files with an argument that its HTTP client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Seed -> folder of the same command; tests may not change them."""
    root = tmp_path_factory.mktemp("runs")
    folders = {seed: root / f"seed-{seed}" for seed in SEEDS}
    for seed, folder in folders.items():
        assert train(folder, "--seed", str(seed)) == 0
    return folders


@pytest.fixture
def runs(trained, tmp_path):
    """The same, to be changed; without the checkpoints."""
    ignore = shutil.ignore_patterns("checkpoint-*")
    return {
        seed: shutil.copytree(folder, tmp_path / folder.name, ignore=ignore)
        for seed, folder in trained.items()
    }


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(capsys, *argv):
    assert main(["card", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix("hf-lpwd card: error: ")


def test_the_card_gets_means_and_intervals_and_else_stays(runs, capsys):
    before = (runs[2] / "README.md").read_text()
    measured = {
        (split, metric): [
            json.loads((runs[seed] / f"{prefix}_results.json").read_text())[f"{prefix}_{metric}"]
            for seed in SEEDS
        ]
        for split, prefix in (("validation", "eval"), ("test", "test"))
        for metric in ("accuracy", "top5_accuracy", "f1_macro")
    }
    assert main(["card", str(runs[2]), "--over_seeds", *map(str, runs.values())]) == 0
    out = capsys.readouterr().out.splitlines()
    text = (runs[2] / "README.md").read_text()
    names = {"accuracy": "Accuracy", "top5_accuracy": "Top-5 accuracy", "f1_macro": "Macro F1"}
    for number, ((split, metric), values) in enumerate(measured.items()):
        estimate = mean_interval(values).clipped()
        assert estimate.value == pytest.approx(statistics.fmean(values))
        mean, low, high = (f"{value:.4f}" for value in (estimate.value, estimate.low, estimate.high))
        assert f"| {split} | {names[metric]} | 3 | {mean} | {low} to {high} |" in text
        assert out[number] == f"{split} {names[metric]}: {mean}, 95% interval {low} to {high}, n = 3"
    assert out[-1] == f"written: {runs[2] / 'README.md'}"
    places = {
        split: 1 + sum(value > measured[split, "accuracy"][1] for value in measured[split, "accuracy"])
        for split in ("validation", "test")
    }
    assert (
        f"The weights are from seed 2: number {places['validation']} of 3 by validation accuracy, "
        f"number {places['test']} of 3 by test accuracy." in text
    )
    assert "with 3 seeds, 1, 2, 3; only the seed differs, and with it the validation split" in text
    assert "\n\n\n" not in text
    # What is new stands in one place; one sentence is cut there, and one says something else.
    start, end = text.index("\nThe same command was run with"), text.index("\n![loss and accuracy")
    rest = text[:start] + text[end:]
    changed = before.replace("with seed 2; results vary with the seed.", "with seed 2.")
    one, several = "one training run, not", "one model and how results vary with the seed, not"
    assert rest == changed.replace(one, several)
    assert changed.count(one) == 1
    # The metadata says what these weights measured.
    assert ModelCard(text).data.to_dict() == ModelCard(before).data.to_dict()


def test_it_can_be_repeated_and_is_pushed(runs, hub, capsys):
    argv = ["card", str(runs[1]), "--over_seeds"]
    assert main([*argv, str(runs[2])]) == 0
    assert "with 2 seeds, 1, 2; only" in (runs[1] / "README.md").read_text()
    assert main([*argv, str(runs[3]), str(runs[2]), str(runs[1])]) == 0
    assert "with 3 seeds, 1, 2, 3; only" in (runs[1] / "README.md").read_text()
    assert not [path for path in runs[1].iterdir() if path.name.startswith(".")]
    assert main(["push", str(runs[1]), "user/digits"]) == 0
    files = hub.repos["user/digits"].files("main")
    assert set(files) == PUBLISHED
    assert b"with 3 seeds, 1, 2, 3; only" in files["README.md"]


def test_the_interval_of_an_accuracy_stays_within_0_and_1(trained):
    run, other, *_ = (read_run(folder) for folder in trained.values())
    for one, accuracy in ((run, 0.1), (other, 0.9)):
        one.facts["metrics"] = {"test": {"accuracy": accuracy}}
    (row,) = over_seeds(run, [other])["rows"]
    assert (row["mean"], row["low"], row["high"]) == (0.5, 0.0, 1.0)


def test_equal_figures_have_an_interval_without_width(trained):
    run, *others = (read_run(folder) for folder in trained.values())
    for one in (run, *others):
        one.facts["metrics"] = {"test": {"accuracy": 0.5}}
    summary = over_seeds(run, others)
    assert summary["rows"] == [{"split": "test", "metric": "Accuracy", "mean": 0.5, "low": 0.5, "high": 0.5}]
    assert summary["places"] == {"test": 1}


def test_one_seed_is_too_few(runs, tmp_path, capsys):
    assert refusal(capsys, runs[1], "--over_seeds", runs[1]) == (
        f"an interval takes two seeds or more, but there is only {runs[1]}, with seed 1: name the folders of "
        "the same command with other seeds"
    )
    again = shutil.copytree(runs[1], tmp_path / "again")
    message = refusal(capsys, runs[1], "--over_seeds", again, runs[2])
    assert message == f"{runs[1]} and {again} have the same seed, 1"


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("run_settings.json", {"learning_rate": 0.5}, "learning_rate is 0.002 in {a} and 0.5 in {b}"),
        ("run_settings.json", {"data_seed": 7}, "data_seed is None in {a} and 7 in {b}"),
        ("run_settings.json", {"devices": 2}, "devices is 1 in {a} and 2 in {b}"),
        ("card.json", {"validation_chose": False}, "validation_chose is True in {a} and False in {b}"),
        ("card.json", {"versions": {}}, "version of Python is '3.11.7' in {a} and None in {b}"),
        (
            "card.json",
            {"metrics": {"test": {"accuracy": 0.5}}},
            "metrics is {{'validation': ['accuracy', 'f1_macro', 'top5_accuracy'], 'test': ['accuracy', "
            "'f1_macro', 'top5_accuracy']}} in {a} and {{'test': ['accuracy']}} in {b}",
        ),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(runs, capsys, file, changes, said):
    edit(runs[3] / file, **changes)
    before = (runs[1] / "README.md").read_bytes()
    message = refusal(capsys, runs[1], "--over_seeds", runs[2], runs[3])
    said = said.replace("'3.11.7'", repr(read_run(runs[1]).facts["versions"]["Python"]))
    assert message == (
        "runs of several seeds may differ in nothing else, but " + said.format(a=runs[1], b=runs[3])
    )
    assert (runs[1] / "README.md").read_bytes() == before


def test_folders_without_a_finished_run_are_refused(runs, tmp_path, capsys):
    assert refusal(capsys, tmp_path, "--over_seeds", runs[1]) == f"{tmp_path} holds no run of hf-lpwd train"
    nowhere = tmp_path / "nowhere"
    assert refusal(capsys, runs[1], "--over_seeds", nowhere) == f"{nowhere} holds no run of hf-lpwd train"
    (runs[2] / "card.json").write_text("{")
    assert refusal(capsys, runs[1], "--over_seeds", runs[2]).startswith(
        f"card.json or run_settings.json in {runs[2]} cannot be read ("
    )
    (runs[2] / "card.json").unlink()
    message = refusal(capsys, runs[1], "--over_seeds", runs[2])
    assert message == f"the run in {runs[2]} has not ended: there is no card.json yet"


def test_what_the_file_system_refuses_is_one_line(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    message = refusal(capsys, runs[1], "--over_seeds", tmp_path / "loop")
    assert message == f"{tmp_path / 'loop'} holds no run of hf-lpwd train"
    long = tmp_path / ("long" * 100)
    assert (
        refusal(capsys, runs[1], "--over_seeds", long)
        == f"{long / 'run_settings.json'}: File name too long (OSError)"
    )

    def refuse(path, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("hf_lpwd.vision.hub.card.write_bytes", refuse)
    message = refusal(capsys, runs[1], "--over_seeds", runs[2])
    assert message == f"{runs[1] / 'README.md'}: Permission denied (PermissionError)"


def test_a_card_that_was_edited_by_hand_is_kept(runs, capsys):
    card = runs[1] / "README.md"
    mine = card.read_text() + "\nMine.\n"
    card.write_text(mine)
    message = refusal(capsys, runs[1], "--over_seeds", runs[2])
    assert message == f"{card} is not as hf-lpwd wrote it, and your changes would be lost: rename it"
    assert card.read_text() == mine
    card.rename(runs[1] / "old.md")
    assert main(["card", str(runs[1]), "--over_seeds", str(runs[2])]) == 0
    assert "with 2 seeds" in card.read_text()
