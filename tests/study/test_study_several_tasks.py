"""What a report must not claim where tasks, or the two sides of a comparison, have not the same runs."""

import numpy as np
import pytest
from study_records import run_of

from hf_lpwd.messages import BadInputError
from hf_lpwd.study import forest
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.answer import answers, sentence
from hf_lpwd.study.plan import Question
from hf_lpwd.study.report import write_report
from hf_lpwd.study.stats import interquartile_mean
from hf_lpwd.study.tables import comparison_table, robustness_table

METHODS = ("wd uniform", "pwd linear")
OVER_TASKS = [Question(compare=["pwd linear"], over_tasks=True)]


def noise(*key):
    return float(np.random.default_rng(list(key)).normal(0.0, 0.002))


def runs(task, seeds=range(5), gain=0.02, methods=METHODS, decays=(0.1,), **changes):
    """Runs of a task, where all methods but the first are better by `gain`."""
    return [
        run_of(
            method,
            seed,
            0.7 + gain * (method != "wd uniform") + noise(place, seed, i),
            dataset_name=task,
            weight_decay=decay,
            **changes,
        )
        for place, method in enumerate(methods)
        for i, decay in enumerate(decays)
        for seed in seeds
    ]


def without_test(records):
    return [r.model_copy(update={"metrics": {"validation": r.metrics["validation"]}}) for r in records]


def test_the_mean_over_some_of_the_tasks_says_so_in_words():
    """It is 5 points worse on the task that is left out as it has 4 seeds."""
    records = [*runs("a", range(4), gain=-0.05), *runs("b", range(10)), *runs("c", range(7))]
    study = analyse(records, questions=OVER_TASKS)
    mean = study.primary_comparisons[-1]
    assert mean.verdict == "better"
    assert sentence(mean).endswith(
        " This is the mean over 2 of 3 tasks; a, default model is left out: 4 seeds, fewer than 5; "
        "seeds 7, 8, 9 are left out: not all tasks have them."
    )


def test_a_task_without_runs_of_a_method_counts_among_the_tasks():
    records = [*runs("a"), *runs("b"), *runs("c", methods=("wd uniform", "rwd uniform"))]
    mean = analyse(records, questions=OVER_TASKS).primary_comparisons[-1]
    assert mean.left_out == [
        "mean over 2 of 3 tasks",
        "c, default model is left out: there is no run of pwd linear",
    ]


def test_a_task_whose_methods_share_no_seed_is_left_out_and_named():
    apart = [*runs("a", range(5), methods=("wd uniform",)), *runs("a", range(5, 10), methods=("pwd linear",))]
    study = analyse([*apart, *runs("b")], questions=OVER_TASKS, complete_seeds=True)
    assert [task.name for task in study.tasks] == ["b, default model"]
    assert study.notes[0] == "a, default model is left out: its methods have no seed in common."
    with pytest.raises(BadInputError, match="no task has a seed that all its methods have"):
        analyse(apart, complete_seeds=True)


def test_runs_without_a_test_accuracy_are_not_compared_with_those_that_have_one():
    """Else accuracies on validation of one side would stand against accuracies on test of the other."""
    records = [*runs("a", methods=("wd uniform",)), *without_test(runs("a", methods=("pwd linear",)))]
    (found,) = analyse(records, questions=[Question(compare=["pwd linear"])]).primary_comparisons
    assert found.withheld == "5 of 10 runs have no test accuracy"


def test_validation_does_not_stand_as_test():
    records = [*without_test(runs("a", decays=(0.1, 1.0))), *runs("b"), *runs("c")]
    study = analyse(records)
    assert robustness_table(study, "a, default model").title == (
        "Validation accuracy over all decay rates above 0"
    )
    assert {name: len(scores) for name, scores in study.scores.items()} == {"wd uniform": 2, "pwd linear": 2}
    assert analyse([*records[:20], *runs("b")]).scores == {}


def test_each_task_weighs_the_same_in_the_interquartile_mean():
    """Eight runs at 0.9 and two at 0.1, in equal parts: a quarter of the weight is cut on each side."""
    assert interquartile_mean([np.full(8, 0.9), np.full(2, 0.1)]).value == pytest.approx(0.5)
    assert interquartile_mean([np.full(5, 0.9), np.full(5, 0.1)]).value == pytest.approx(0.5)
    # Of tasks of 7, 9 and 11 runs the middle half is that of equal parts, within a part in a thousand.
    samples = [np.full(7, 0.0), np.full(9, 0.5), np.full(11, 1.0)]
    assert interquartile_mean(samples).value == pytest.approx(0.5, abs=1e-3)


def test_better_over_equal_settings_is_no_advice_for_the_best_setting():
    """pwd falls less with the rate, but at its best setting it is 2 points worse."""
    scores = {"wd uniform": (0.80, 0.60), "pwd linear": (0.78, 0.77)}
    records = [
        run_of(method, seed, score + 0.01 * seed + noise(seed, i), weight_decay=decay)
        for i, method in enumerate(METHODS)
        for decay, score in zip((0.1, 1.0), scores[method], strict=True)
        for seed in range(5)
    ]
    equal = Question(compare=["pwd linear"], at="equal")
    study = analyse(records, questions=[equal])
    (found,) = study.primary_comparisons
    assert found.verdict == "better"
    assert "5 seeds over all equal settings, p" in sentence(found)
    assert answers(study)[0].headline == (
        "pwd linear is better than wd uniform over all equal settings; no question compares each at its best "
        "setting."
    )
    both = analyse(records, questions=[Question(compare=["pwd linear"]), equal])
    assert [c.verdict for c in both.primary_comparisons] == ["worse", "better"]
    assert answers(both)[0].headline == (
        "Use wd uniform (decay 0.1, learning rate 0.001): nothing was shown to be better. But pwd linear is "
        "better than wd uniform over all equal settings."
    )


def test_settings_without_a_counterpart_are_said():
    """Of the learning rates 1, 3 and 1, 2 one is in both grids."""
    records = [
        *runs("a", methods=("wd uniform",)),
        *runs("a", methods=("pwd linear",)),
        *runs("a", methods=("wd uniform",), learning_rate=3e-3),
        *runs("a", methods=("pwd linear",), learning_rate=2e-3),
        *runs("a", methods=("pwd linear",), learning_rate=4e-3),
    ]
    question = Question(compare=["pwd linear"], at="equal")
    (found,) = analyse(records, questions=[question]).primary_comparisons
    assert found.tried == (1, 1)
    assert found.left_out == [
        "2 of 3 settings of pwd linear left out: wd uniform lacks them",
        "1 of 2 settings of wd uniform left out: pwd linear lacks them",
    ]


def test_what_was_not_compared_has_tried_no_settings():
    (table,) = [comparison_table("t", "T", analyse(runs("a")).controls["a, default model"], False)]
    place = [name for name, _ in table.columns].index("settings tried")
    assert [row[place] for row in table.rows] == [None, None]


def test_tables_of_questions_without_names_are_numbered_as_the_questions_are(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for record in runs("a"):
        (folder / f"{record.id}.json").write_text(record.model_dump_json(exclude_unset=True))
    questions = [Question(), Question(compare=["pwd linear"], at="equal")]
    write_report(str(folder), str(tmp_path / "out"), questions=questions)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- Question 1: Is each method" in text
    assert "**Primary comparisons on test: Question 2**" in text


def test_the_advice_is_the_setting_that_was_compared():
    """Over its ten seeds pwd's best setting is rate 1; over the five that both have it is rate 0.1."""
    records = runs("a", methods=("wd uniform",))
    for seed in range(10):
        records.append(run_of("pwd linear", seed, 0.75 + noise(seed), dataset_name="a", weight_decay=0.1))
        high = 0.72 if seed < 5 else 0.80
        records.append(run_of("pwd linear", seed, high + noise(seed), dataset_name="a", weight_decay=1.0))
    study = analyse(records)
    assert [result.setting.decay for result in study.results["a, default model"]] == [0.1, 1.0]
    assert study.primary_comparisons[0].verdict == "better"
    assert answers(study)[0].headline == (
        "Use pwd linear (decay 0.1, learning rate 0.001): it is better than wd uniform."
    )


def test_the_forest_plot_shows_the_margin_of_each_question(monkeypatch):
    """One of 0.5 points would make a difference look smaller than a margin of 0.1 points."""
    canvases = []
    monkeypatch.setattr(forest, "saved", lambda canvas, *texts: canvases.append(canvas))
    questions = [Question(margin=0.1), Question(compare=["pwd linear"], at="equal", margin=0.5)]
    study = analyse(runs("a"), questions=questions)
    forest.draw_forest(study.primary_comparisons, "differences", "Primary questions", False)
    (axes,) = canvases[0].axes
    bands = sorted((bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in axes.patches)
    assert bands == [
        (0.0, pytest.approx(-0.1), pytest.approx(0.2)),
        (1.0, pytest.approx(-0.5), pytest.approx(1.0)),
    ]
    assert canvases[0].get_supxlabel().endswith("(band: margin of 0.1 to 0.5)")


def test_the_forest_plot_tells_questions_apart_and_has_a_row_for_each_task(monkeypatch):
    """The same two methods in two questions had the same label, and each task a label of three lines."""
    canvases = []
    monkeypatch.setattr(forest, "saved", lambda canvas, *texts: canvases.append((canvas, texts[2])))
    questions = [
        Question(name="Q1", compare=["pwd linear"], at="equal"),
        Question(name="Q2", compare=["pwd linear"], at="equal", measure="range", over_tasks=True),
    ]
    records = [
        run_of(method, seed, 0.7 + 0.1 * gain + 0.01 * seed * gain, weight_decay=rate, dataset_name=task)
        for task, gain in (("a", 1), ("b", 2))
        for method, rate in ((m, r) for m in METHODS for r in (0.1, 1.0))
        for seed in range(5)
    ]
    comparisons = analyse(records, questions=questions).primary_comparisons
    forest.draw_forest(comparisons, "differences", "Primary questions", True)
    ((canvas, alt),) = canvases
    assert [axes.get_title() for axes in canvas.axes] == ["Q1: pwd linear", "Q2: pwd linear, range"]
    tasks = ["a, default model", "b, default model", "mean over tasks"]
    assert [label.get_text() for label in canvas.axes[0].get_yticklabels()] == tasks
    rows = [[dot.get_ydata()[0] for dot in axes.lines if dot.get_marker() == "o"] for axes in canvas.axes]
    assert rows == [[0, 1], [0, 1, 2]]
    assert "pwd linear against wd uniform on b, default model +0.00" in alt
