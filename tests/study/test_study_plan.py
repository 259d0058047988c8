"""The plan: stored before the first run, frozen by its hash, compared with the records; what it takes."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image
from study_records import run_of

from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError
from hf_lpwd.study import planning
from hf_lpwd.study import sweep as study_sweep
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.config import read_study
from hf_lpwd.study.plan import PlannedRun, Question, differences, read_plan, store_plan
from hf_lpwd.study.planning import Trial, describe, detectable_points, fit_budget, parse_duration
from hf_lpwd.study.record import Record
from hf_lpwd.study.records import pack_records
from hf_lpwd.study.run import compute_record
from hf_lpwd.study.stats import t_power

GRID = """
train: {max_steps: 100, learning_rate: 1e-2}
grid:
  decay_timing: [wd, pwd]
  layer_schedule: [uniform]
  weight_decay: [0.01, 0.1, 1, 10]
  seed: [0, 1, 2, 3, 4]
baselines: [no_decay]
"""


def planned(records):
    return [
        PlannedRun(id=r.id, method=r.method, settings=r.settings.model_dump(exclude_unset=True))
        for r in records
    ]


AFTERWARDS = {"times": {"started": "2999-01-01T00:00:00Z", "seconds": 1.0}}
RECORDS = [
    run_of(method, seed, 0.7 + 0.001 * seed, record=AFTERWARDS)
    for method in ("wd uniform", "pwd linear")
    for seed in range(5)
]


def test_a_registered_plan_is_frozen(tmp_path):
    plan = store_plan(str(tmp_path), [Question()], planned(RECORDS), register=True)
    assert plan.registered == plan.hash
    assert read_plan(str(tmp_path)) == plan
    assert analyse(RECORDS, plan).deviations == []
    with pytest.raises(BadInputError, match="holds a plan already"):
        store_plan(str(tmp_path), [Question()], planned(RECORDS), register=True)
    with pytest.raises(BadInputError, match="the plan of other questions"):
        store_plan(str(tmp_path), [Question(margin=1.0)], planned(RECORDS))


def test_each_deviation_is_said(tmp_path):
    store_plan(str(tmp_path), [Question()], planned(RECORDS), register=True)
    later = run_of("pwd linear", 0, 0.9, weight_decay=3.0)
    store_plan(str(tmp_path), [Question()], planned([*RECORDS, later]))
    file = tmp_path / "plan.json"
    content = json.loads(file.read_text())
    assert [run["added"] for run in content["runs"]] == [False] * 10 + [True]
    # Somebody takes a run out of the plan that did not go well.
    del content["runs"][3]
    file.write_text(json.dumps(content))
    assert analyse(
        [*RECORDS, later], read_plan(str(tmp_path)), baseline="pwd linear", margin=2.0
    ).deviations == [
        "2 runs were added after the plan was stored, and do not count.",
        "The registered plan was changed after it was registered: its hash does not fit.",
        "The report compares to pwd linear; the plan says wd uniform.",
        "The report's margin is 2 points; the plan says 0.3.",
        "1 record is older than the plan.",
    ]


def test_a_plan_is_registered_before_the_first_run(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BadInputError, match="a plan is registered before the first run"):
        store_plan(str(tmp_path), [Question()], planned(RECORDS), register=True)


def test_the_plan_travels_with_packed_records(tmp_path):
    for record in RECORDS:
        (tmp_path / f"{record.id}.json").write_text(record.model_dump_json(exclude_unset=True))
    plan = store_plan(str(tmp_path), [Question()], planned(RECORDS))
    pack_records([str(tmp_path)], str(tmp_path / "study.jsonl.gz"))
    assert read_plan(str(tmp_path / "study.jsonl.gz")) == plan


@pytest.mark.parametrize(
    "text", ["", "[]", '{"created": "now"}', '{"created": 1, "questions": [], "runs": {}}']
)
def test_a_damaged_plan_is_named(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(BadInputError, match=r"plan\.json cannot be read"):
        read_plan(str(tmp_path))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(GRID)
    return read_study(str(path))


def test_what_a_study_takes_and_can_show(study):
    lines = list(describe(study, [Trial(seconds=60.0, test_images=1000, steps=100)], 2, None))
    assert lines[:4] == [
        "45 runs on 1 task, 5 seeds:",
        "  wd uniform: 20 runs, 4 settings to choose from",
        "  pwd uniform: 20 runs, 4 settings to choose from",
        "  no decay: 5 runs, 1 setting to choose from",
    ]
    assert lines[4:6] == [
        "a run takes about 1 min 0 s (100 steps, 1,000 test images)",
        "in all about 22 min 30 s with 2 side by side",
    ]
    # Runs that disagree on a tenth of 1,000 images: 1 point; 3.761 standard errors are found at 80%.
    assert t_power(5, 1.682 / 1.0 * 5**0.5) == pytest.approx(0.8, abs=0.001)
    assert "a true difference of 1.7 points is found with a probability of 80%" in lines[6]


def test_a_budget_buys_rates_first_and_then_seeds(study):
    """9 runs a seed with all four rates, 7 with three: 35 runs are five seeds of three rates."""
    assert fit_budget(study, 35 * 60.0, 60.0, 1) == planning.Choice([0.01, 1.0, 10.0], 5, 35)
    assert fit_budget(study, 45 * 60.0, 60.0, 1) == planning.Choice([0.01, 0.1, 1.0, 10.0], 5, 45)
    assert fit_budget(study, 47 * 60.0, 60.0, 2) == planning.Choice([0.01, 0.1, 1.0, 10.0], 10, 90)
    with pytest.raises(BadInputError, match="has time for 34 runs, but 5 seeds take 35, about 35 min 0 s"):
        fit_budget(study, 34 * 60.0, 60.0, 1)


def test_durations():
    assert [parse_duration(text) for text in ("90min", "2h", "1.5 d", "30s")] == [
        5400.0,
        7200.0,
        129600.0,
        30.0,
    ]
    for text in ("2", "h", "-1h", "0h", "2 weeks"):
        with pytest.raises(BadInputError, match="a budget is a time"):
            parse_duration(text)


def test_the_example_is_a_study(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    argv = [
        "study",
        "init",
        str(path),
        "--dataset_name",
        "beans",
        "--model_type",
        "vit",
        "--test_split",
        "0.2",
    ]
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: hf-lpwd study plan {path}"
    content = yaml.safe_load(path.read_text())
    assert {name: content["train"][name] for name in ("dataset_name", "model_type", "test_split")} == {
        "dataset_name": "beans", "model_type": "vit", "test_split": 0.2,
    }  # fmt: skip
    study = read_study(str(path))
    assert {run.method for run in study.runs} == {
        "wd uniform", "wd linear matched", "pwd uniform", "pwd linear matched", "no decay", "noise floor",
    }  # fmt: skip
    assert main(argv) == 2
    assert "is there already" in capsys.readouterr().err


TINY = (
    "model_type: vit, config_overrides: 'hidden_size=16,num_hidden_layers=1,num_attention_heads=2,"
    "intermediate_size=32,image_size=8,patch_size=4'"
)


@pytest.fixture
def folder_study(tmp_path):
    """A study on 2 classes of 40 and 60 images, without a validation or a test split."""
    for name, number in (("cat", 40), ("dog", 60)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(number):
            color = (i, 100 + i, 255 * (name == "dog"))
            Image.new("RGB", (8, 8), color).save(tmp_path / "data" / name / f"{i}.png")
    path = tmp_path / "study.yaml"
    path.write_text(
        f"train: {{train_dir: {tmp_path}/data, augmentation: none, max_steps: 2, eval_strategy: 'no', "
        f"save_strategy: 'no', per_device_train_batch_size: 10, {TINY}}}\n"
        "grid: {decay_timing: [wd, pwd], layer_schedule: [uniform], seed: [0, 1]}\nbaselines: [no_decay]"
    )
    return path


def test_a_dataset_without_a_test_split_gets_one(folder_study):
    """The same 15% of each class for every seed, cut before validation is; the settings do not change."""
    runs = read_study(str(folder_study)).runs
    assert "test_split" not in runs[0].settings
    records = [Record.model_validate(compute_record(run, str(folder_study.parent / "w"))) for run in runs]
    assert {record.status for record in records} == {"completed"}
    assert [record.seed for record in records] == [0, 0, 0, 1, 1, 1]
    for record in records:
        assert record.data.sizes == {"train": 72, "validation": 13, "test": 15}
        assert record.data.test_cut_from_train
    by_seed = {record.seed: record.data.fingerprints for record in records}
    assert len({record.data.fingerprints["test"] for record in records}) == 1
    assert by_seed[0]["validation"] != by_seed[1]["validation"]
    assert (
        "The dataset has no test split: 15 of its training images were held out as one before anything was "
        "chosen."
    ) in analyse(records).notes


def test_plan_at_the_command_line_says_the_test_split_and_the_next_command(folder_study, capsys):
    assert main(["study", "plan", str(folder_study), "--n_jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 runs on 1 task, 2 seeds:"
    assert re.fullmatch(r"a run takes about .* \(2 steps, 15 test images\)", lines[4])
    assert lines[5].endswith(
        "data has no test split: 15 of its training images, of all classes, are held out as one, the same "
        "for every run (test_split under train sets how many)"
    )
    assert lines[-2:] == [
        "2 seeds: with fewer than 5 there is no verdict",
        f"next: hf-lpwd study register {folder_study}",
    ]


@pytest.mark.parametrize("action", ["plan", "run"])
def test_each_warning_about_the_data_is_said_once(folder_study, action, capsys):
    shutil.copytree(folder_study.parent / "data" / "cat", folder_study.parent / "data" / "fox")
    text = folder_study.read_text().replace("seed: [0, 1]", "seed: [0]")
    folder_study.write_text(text.replace("max_steps: 2", "max_steps: 1, max_train_samples: 2"))
    runs = ["--runs", f"{folder_study.parent}/runs"]
    assert main(["study", action, str(folder_study), "--n_jobs", "1", *runs]) == 0
    lines = Counter(capsys.readouterr().err.splitlines())
    assert [line for line in lines if "no training image" in line] == ["1 class has no training image: dog"]
    assert set(lines.values()) == {1}


def test_plan_on_digits_with_a_budget(tmp_path, capsys):
    """All of it: trial run, checks, choice of the grid, and a study's file that can be read."""
    path, chosen = tmp_path / "study.yaml", tmp_path / "chosen.yaml"
    path.write_text(GRID.replace("max_steps: 100", "max_steps: 20, max_train_samples: 200"))
    argv = ["study", "plan", str(path), "--n_jobs", "1", "--budget", "10h", "--out", str(chosen)]
    assert main([*argv, "--std", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "45 runs on 1 task, 5 seeds:"
    assert "(20 steps, 359 test images)" in lines[4]
    assert lines[6] == (
        "question 1: 1 comparison with wd uniform, margin 0.3 points; a true difference of 0.84 points is "
        "found with a probability of 80%, if paired differences vary by 0.5 points (as given)"
    )
    assert lines[7] == "10h are enough for 180 runs: 20 seeds, decay rates 0.01, 0.1, 1, 10"
    assert lines[8:] == [f"written: {chosen}", f"next: hf-lpwd study register {chosen}"]
    assert len(read_study(str(chosen)).runs) == 180


def test_a_file_for_a_budget_without_one_is_refused(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(GRID)
    assert main(["study", "plan", str(path), "--out", str(tmp_path / "other.yaml")]) == 2
    assert "out is the study that a budget buys: add --budget" in capsys.readouterr().err


def test_the_file_for_a_budget_replaces_no_other(tmp_path, capsys):
    """It replaced the study itself, and its comments were gone."""
    path = tmp_path / "study.yaml"
    path.write_text(GRID)
    assert main(["study", "plan", str(path), "--budget", "10h", "--out", str(path)]) == 2
    assert f"{path} is there already: name another file" in capsys.readouterr().err
    assert path.read_text() == GRID


def test_a_rate_that_takes_whole_weights_away_is_refused_before_the_first_run(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(GRID.replace("learning_rate: 1e-2", "learning_rate: 1"))
    assert main(["study", "plan", str(path), "--n_jobs", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-lpwd study plan: error: ")
    assert "weight_decay" in error


def test_registering_at_the_command_line(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text("grid: {decay_timing: [wd], layer_schedule: [uniform], seed: [0, 1]}")
    assert main(["study", "register", str(path), "--runs", str(tmp_path / "runs")]) == 0
    plan = read_plan(str(tmp_path / "runs"))
    assert capsys.readouterr().out.splitlines() == [
        f"registered in {tmp_path}/runs/plan.json: 2 runs, SHA-256 {plan.registered}",
        f"next: hf-lpwd study run {path} --runs {tmp_path}/runs",
    ]


CHANGES = [
    "2 runs are not in the plan registered on {date}, and will count as added later, in no verdict",
    "1 registered run is no longer asked for",
]


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A registered study of two runs; nothing is loaded, timed or trained."""
    monkeypatch.setattr(planning, "check_run", lambda run: None)
    monkeypatch.setattr(planning, "timed_trial", lambda run: Trial(seconds=1.0, test_images=100, steps=10))
    monkeypatch.setattr(study_sweep, "sweep", lambda runs, folder, **options: Counter(completed=len(runs)))
    path = tmp_path / "study.yaml"
    path.write_text("grid: {decay_timing: [wd], layer_schedule: [uniform], seed: [0, 1]}")
    assert main(["study", "register", str(path), "--runs", str(tmp_path / "runs")]) == 0
    return path


@pytest.mark.parametrize("action", ["plan", "run"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_study_that_differs_from_its_registered_plan_says_so_first(registered, action, changed, capsys):
    runs = f"{registered.parent}/runs"
    date = read_plan(runs).created[:10]
    if changed:
        registered.write_text(registered.read_text().replace("[0, 1]", "[1, 2, 3]"))
    capsys.readouterr()
    # Again after the run, which adds the new runs to the plan.
    for _ in range(2):
        assert main(["study", action, str(registered), "--runs", runs, "--n_jobs", "1"]) == 0
        said = capsys.readouterr()
        lines = (said.out if action == "plan" else said.err).splitlines()
        assert lines[: 2 * changed] == [line.format(date=date) for line in CHANGES[: 2 * changed]]
        assert [line for line in lines[2 * changed :] if "asked for" in line or "added" in line] == []
        following = {"plan": "run", "run": "report"}[action]
        assert said.out.splitlines()[-1] == f"next: hf-lpwd study {following} {registered} --runs {runs}"


@pytest.mark.parametrize("action", [["plan"], ["run"], ["plan", "--budget", "10s", "--out", "chosen.yaml"]])
def test_other_questions_than_the_registered_ones_are_refused_first(registered, action, capsys, monkeypatch):
    monkeypatch.chdir(registered.parent)
    monkeypatch.setattr(planning, "check_run", pytest.fail)
    registered.write_text(registered.read_text() + "\nquestions: [{to: wd uniform, margin: 1}]\n")
    assert main(["study", *action, str(registered), "--runs", "runs"]) == 2
    assert "runs holds the plan of other questions" in capsys.readouterr().err
    assert not Path("chosen.yaml").exists()


def test_runs_that_a_budget_chose_and_that_are_not_in_the_plan_of_the_folder_are_said(registered, capsys):
    """The plan has seeds 0 and 1 at the default rate, and the budget buys five seeds at other rates."""
    registered.write_text(
        "grid: {decay_timing: [wd], layer_schedule: [uniform], weight_decay: [0.3], seed: [0, 1]}"
    )
    chosen, runs = registered.parent / "chosen.yaml", f"{registered.parent}/runs"
    budget = ["--budget", "5s", "--out", str(chosen), "--runs", runs, "--n_jobs", "1"]
    capsys.readouterr()
    assert main(["study", "plan", str(registered), *budget]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:-1] == [
        f"written: {chosen}",
        f"5 runs are not in the plan registered on {read_plan(runs).created[:10]}, and will count as added "
        "later, in no verdict",
        "2 registered runs are no longer asked for",
    ]
    assert lines[-1] == f"next: hf-lpwd study run {chosen} --runs {runs}"


def test_a_method_that_is_renamed_after_its_plan_was_stored_is_refused(tmp_path):
    """Else the records of one method would have two names, and count as two methods."""
    store_plan(str(tmp_path), [Question()], planned(RECORDS))
    renamed = [
        run.model_copy(update={"method": "shuffled"}) if run.method == "pwd linear" else run
        for run in planned(RECORDS)
    ]
    for act in (store_plan, differences):
        with pytest.raises(BadInputError, match="calls 'pwd linear' what the study calls 'shuffled'"):
            act(str(tmp_path), [Question()], renamed)


def test_runs_that_are_not_in_a_plan_that_was_not_registered(tmp_path):
    store_plan(str(tmp_path), [Question()], planned(RECORDS))
    date = read_plan(str(tmp_path)).created[:10]
    later = run_of("pwd linear", 0, 0.9, weight_decay=3.0)
    assert differences(str(tmp_path), [Question()], planned([*RECORDS[2:], later])) == [
        f"1 run is not in the plan stored on {date}, and will count as added later, in no verdict",
        "2 planned runs are no longer asked for",
    ]
    assert differences(str(tmp_path / "none"), [Question()], planned(RECORDS)) == []


def test_the_rates_and_seeds_that_a_budget_buys_replace_those_under_train(registered, capsys):
    chosen = registered.parent / "chosen.yaml"
    registered.write_text(
        "train: {seed: 7, total_decay: 0.1}\ngrid: {decay_timing: [wd, pwd], layer_schedule: [uniform]}"
    )
    argv = ["study", "plan", str(registered), "--budget", "10s", "--n_jobs", "1", "--out", str(chosen)]
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: hf-lpwd study register {chosen}"
    study = read_study(str(chosen))
    assert [(run.settings["seed"], run.method) for run in study.runs] == [
        (seed, method) for seed in range(5) for method in ("wd uniform", "pwd uniform")
    ]
    assert {run.settings["total_decay"] for run in study.runs} == {0.1}


@pytest.mark.parametrize("budget", [[], ["--budget", "10s", "--out", "chosen.yaml"]])
@pytest.mark.parametrize(
    ("there", "following"), [("record.json", "run"), ("plan.json", "run"), (None, "register")]
)
def test_plan_names_a_next_command_that_is_not_refused(
    registered, monkeypatch, capsys, budget, there, following
):
    """Only a folder without records, or with an unregistered plan of these runs, can be registered."""
    monkeypatch.chdir(registered.parent)
    plan = Path("runs/plan.json")
    if there == "record.json":
        plan.rename("runs/record.json")
    elif there is None:
        plan.unlink()
    argv = ["study", "plan", str(registered), "--runs", "runs", "--n_jobs", "1", *budget]
    assert main(argv) == 0
    file = budget[-1] if budget else registered
    assert capsys.readouterr().out.splitlines()[-1] == f"next: hf-lpwd study {following} {file} --runs runs"
    assert main(["study", following, str(file), "--runs", "runs"]) == 0


def test_power_counts_what_the_report_corrects_together(tmp_path):
    """Four sides on two tasks and their means, in one family of 12; a question of its own has 2."""
    sides = "".join(
        f"  - {{name: one family, compare: [{timing} linear], over_tasks: true}}\n"
        for timing in ("wd", "rwd", "pwd", "l2")
    )
    (tmp_path / "study.yaml").write_text(
        "grid:\n  decay_timing: [wd, rwd, pwd, l2]\n  layer_schedule: [uniform, linear]\n"
        "  data: [{name: a, max_train_samples: 100}, {name: b, max_train_samples: 200}]\n"
        f"  seed: [0, 1, 2, 3, 4]\nquestions:\n{sides}"
        "  - compare: [{max_train_samples: 100, decay_timing: pwd, layer_schedule: linear}]\n"
        "    to: {max_train_samples: 200, decay_timing: pwd, layer_schedule: linear}\n"
    )
    study = read_study(str(tmp_path / "study.yaml"))
    lines = list(describe(study, [Trial(1.0, 1000, 10)] * 2, 1, 0.5))[-5:]
    points = f"{detectable_points(5, 12, 0.5):.2g}"
    for number, line in enumerate(lines[:4], 1):
        start = f"question {number}: 3 comparisons of 12 that are corrected together with wd uniform, margin"
        assert line.startswith(start)
        assert f"a true difference of {points} points is found" in line
    assert lines[4].startswith("question 5: 1 comparison with max_train_samples=200, decay_timing=pwd, ")
    assert f"a true difference of {detectable_points(5, 1, 0.5):.2g} points is found" in lines[4]
