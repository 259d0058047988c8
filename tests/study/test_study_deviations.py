"""Reports over several files count the plan of each; what a report changes in a plan's questions is said."""

import numpy as np
import pytest
import yaml
from study_records import made_record, run_of, write_records

from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.answer import answers
from hf_lpwd.study.config import read_study
from hf_lpwd.study.plan import Plan, PlannedRun, Question, store_plan
from hf_lpwd.study.records import pack_records


def file_of(name, have, planned=None, added=0, questions=()):
    """The records of a file, of which `have` of the planned seeds are done, and its plan."""
    runs = [
        run_of(method, seed, 0.8 + gain + np.random.default_rng(seed).normal(0.0, 0.001), dataset_name=name)
        for seed in range(max(have, planned or 0) + added)
        for method, gain in (("wd uniform", 0.0), ("pwd linear", 0.02))
    ]
    runs = [run.model_copy(update={"task": {"file": name}}) for run in runs]
    if planned is None:
        return runs, None
    plan = [
        PlannedRun(
            id=run.id,
            method=run.method,
            settings=run.settings.model_dump(exclude_unset=True),
            added=run.seed >= planned,
        )
        for run in runs
    ]
    done = [run for run in runs if run.seed < have or run.seed >= planned]
    created = "2025-01-01T00:00:00Z"
    return done, Plan(created=created, questions=list(questions) or [Question()], runs=plan)


def joined(*files, **changes):
    names = ("a", "b")
    made = [file_of(name, **one) for name, one in zip(names, files, strict=True)]
    plans = {f"runs/{name}": plan for name, (_, plan) in zip(names, made, strict=True)}
    return analyse([run for runs, _ in made for run in runs], plans, **changes)


def test_what_is_missing_and_added_counts_over_all_plans():
    study = joined({"have": 12, "planned": 20, "added": 2}, {"have": 6, "planned": 6})
    assert {name: study.counts[name] for name in ("planned", "completed", "missing", "added")} == {
        "planned": 52,
        "completed": 36,
        "missing": 16,
        "added": 4,
    }
    reason = "16 of the 52 planned runs are missing"
    assert [(c.paired.num_seeds, c.withheld) for c in study.primary_comparisons] == [
        (12, reason),
        (6, reason),
    ]
    assert [a.headline for a in answers(study)] == ["No answer yet: 36 of 52 planned runs are done."] * 2


def test_a_file_without_a_plan_is_named_and_its_runs_count():
    study = joined({"have": 6, "planned": 6}, {"have": 5})
    assert [c.verdict for c in study.primary_comparisons] == ["better", "better"]
    assert study.deviations == ["No plan was stored with runs/b: the runs that are there count as planned."]
    assert list(study.plans) == ["runs/a"]
    assert joined({"have": 6}, {"have": 5}).deviations == [
        "No plan was stored with these records: what was planned is taken from the grid that is there."
    ]


def test_each_plan_is_checked_by_itself():
    early = {"have": 5, "planned": 5}
    runs, plan = file_of("a", **early)
    others, other = file_of("b", **early)
    plan = plan.model_copy(update={"registered": plan.hash, "created": "2026-01-02T00:00:00Z"})
    other = other.model_copy(update={"registered": plan.hash})
    assert analyse([*runs, *others], {"a": plan, "b": other}).deviations == [
        "10 records are older than the plan of a.",
        "The registered plan of b was changed after it was registered: its hash does not fit.",
    ]


def test_plans_of_different_questions_need_the_question():
    files = {"have": 6, "planned": 6}, {"have": 6, "planned": 6, "questions": [Question(margin=5.0)]}
    with pytest.raises(BadInputError) as error:
        joined(*files)
    assert str(error.value) == (
        "the plans of runs/a and runs/b have different questions: report them apart, or name the file of the "
        "questions (--questions)"
    )
    assert joined(*files, questions=[Question()]).deviations == [
        "The report's margin is 0.3 points; the plan says 5."
    ]


def deviations(planned, **changes):
    runs, plan = file_of("a", have=6, planned=6, questions=planned)
    return analyse(runs, plan, **changes).deviations


def test_other_questions_than_those_of_the_plan_are_said():
    strict, loose = Question(name="strict"), Question(name="loose", margin=3.0)
    assert deviations([loose, strict], margin=3.0) == [
        "Question 2: the report's margin is 3 points; the plan says 0.3."
    ]
    assert deviations([loose, strict], questions=[strict, loose]) == []
    assert deviations([loose, strict], questions=[strict]) == ["Question 1 of the plan is not answered."]
    assert deviations([strict], questions=[strict, loose]) == ["Question 2 of the report is not in the plan."]
    assert deviations(
        [Question()], questions=[Question(compare=["wd uniform"], to="pwd linear", margin=5.0)]
    ) == [
        'The report has compare: ["wd uniform"]; the plan says [].',
        "The report compares to pwd linear; the plan says wd uniform.",
        "The report's margin is 5 points; the plan says 0.3.",
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A registered study of 12 runs with their records."""
    monkeypatch.chdir(tmp_path)
    grid = {"decay_timing": ["wd", "pwd"], "layer_schedule": ["uniform"], "seed": list(range(6))}
    content = {"train": {"model_type": "vit"}, "grid": grid, "questions": [{"margin": 0.3}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = read_study("study.yaml")
    store_plan("runs/study", study.questions, study.planned(), register=True)
    records = [
        made_record(timing=run.settings["decay_timing"], seed=run.settings["seed"])
        | {"id": run.id, "settings": run.settings, "method": run.method}
        for run in study.runs
    ]
    write_records(records, tmp_path / "runs/study")
    return content


def test_a_study_that_is_not_its_plan_is_not_reported_as_if_it_were(folder, tmp_path, capsys):
    assert main(["study", "report", "study.yaml"]) == 0
    capsys.readouterr()
    folder["questions"] = [{"margin": 5.0}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(folder))
    assert main(["study", "report", "study.yaml"]) == 2
    refused = "runs/study holds the plan of other questions: put the study's questions back"
    assert refused in capsys.readouterr().err
    del folder["questions"]
    folder["grid"]["seed"] = list(range(8))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(folder))
    assert main(["study", "report", "study.yaml"]) == 0
    assert capsys.readouterr().out.startswith("4 runs are not in the plan registered on ")
    (tmp_path / "study.yaml").unlink()
    assert main(["study", "report", "study.yaml"]) == 0


def test_folders_with_a_plan_are_not_packed_together(folder, tmp_path):
    write_records([made_record(seed=20)], tmp_path / "other")
    with pytest.raises(
        BadInputError, match=r"^runs/study has a plan, and a file holds one: pack each folder"
    ):
        pack_records(["other", "runs/study"], "both.jsonl.gz")
    assert not (tmp_path / "both.jsonl.gz").exists()


def test_the_command_reads_the_plan_of_each_file(folder, tmp_path, capsys):
    pack_records(["runs/study"], "packed.jsonl.gz")
    write_records([made_record(seed=s, dataset_name="x") for s in range(5)], tmp_path / "other")
    assert main(["report", "packed.jsonl.gz", "other"]) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "<p>Stored 20" in page
    assert "No plan was stored with other: the runs that are there count as planned." in page
