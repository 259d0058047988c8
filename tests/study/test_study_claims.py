"""Claims that a study must not make, each on records whose truth is known."""

import base64
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from study_records import failed_record, run_of, write_records

from hf_lpwd.messages import BadInputError
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.answer import answers, sentence
from hf_lpwd.study.figures import draw_profile
from hf_lpwd.study.forest import draw_forest
from hf_lpwd.study.plan import Plan, PlannedRun, Question
from hf_lpwd.study.record import Record
from hf_lpwd.study.report import write_report
from hf_lpwd.study.stats import smallest_shift
from hf_lpwd.study.tasks import Setting

SEEDS = range(5)


def noise(*key):
    return float(np.random.default_rng(list(key)).normal(0.0, 0.01))


def grid(method, decays=(0.01, 0.1), seeds=SEEDS, gain=0.0, key=0, **changes):
    """Runs of a method; the noise is that of `key`, decay and seed: equal keys make identical methods."""
    return [
        run_of(method, seed, 0.7 + gain + noise(key, i, seed), weight_decay=decay, **changes)
        for i, decay in enumerate(decays)
        for seed in seeds
    ]


def plan_of(records, questions=(), **changes):
    runs = [
        PlannedRun(id=r.id, method=r.method, settings=r.settings.model_dump(exclude_unset=True))
        for r in records
    ]
    fields = {"created": "2025-01-01T00:00:00Z", "questions": list(questions) or [Question()], "runs": runs}
    return Plan(**fields | changes)


def only(study):
    """The one comparison of the one primary question."""
    ((_, (comparison,)),) = study.primary
    return comparison


class TestAMissingRun:
    """Two identical methods of three settings; the best setting of one loses a record."""

    records = grid("wd uniform", (0.01, 0.1, 1.0), range(6)) + grid("pwd linear", (0.01, 0.1, 1.0), range(6))

    def test_does_not_change_what_is_compared(self):
        for victim in range(18, 36):
            left = [record for i, record in enumerate(self.records) if i != victim]
            found = only(analyse(left))
            assert found.paired.mean == 0.0
            assert found.paired.num_seeds == 5
            assert found.settings[0] == found.settings[1]
            seed = self.records[victim].seed
            assert any(f"seed {seed} is left out: pwd linear lacks its run at" in n for n in found.left_out)

    def test_does_not_change_which_setting_is_compared(self):
        """Validation prefers the setting that is 2 points worse on test; one of its records is missing.

        Where only complete settings may be chosen, the other setting of one method stands against this one of
        the other: +2.00 points.
        """
        records = [
            run_of(
                method, s, test + noise(s) + noise(d, s) / 20, 0.7 + 0.001 * d + noise(s), weight_decay=decay
            )
            for method in ("wd uniform", "pwd linear")
            for d, (decay, test) in enumerate(((0.1, 0.72), (1.0, 0.70)))
            for s in range(6)
        ]
        victim = records.index(next(r for r in records[18:] if r.seed == 3))
        found = only(analyse(records[:victim] + records[victim + 1 :]))
        assert found.settings == (Setting(1.0, 1e-3),) * 2
        assert (found.paired.num_seeds, found.paired.mean) == (5, 0.0)
        assert found.verdict == "equivalent"

    def test_of_a_plan_leaves_no_verdict(self):
        plan = plan_of(self.records)
        assert only(analyse(self.records, plan)).withheld is None
        found = only(analyse(self.records[:-1], plan))
        assert (found.verdict, found.withheld) == ("undecided", "1 of the 36 planned runs are missing")

    def test_added_beyond_the_plan_does_not_count(self):
        lucky = run_of("pwd linear", 0, 0.99, weight_decay=5.0)
        study = analyse([*self.records, lucky], plan_of(self.records))
        assert only(study).paired.mean == 0.0
        assert study.counts["added"] == 1
        assert "1 run was added after the plan was stored, and does not count." in study.deviations

    def test_one_added_without_a_plan_does_not_count_either(self):
        lucky = run_of("pwd linear", 0, 0.99, weight_decay=5.0)
        found = only(analyse([*self.records, lucky]))
        assert found.paired.mean == 0.0
        assert "pwd linear at decay 5, learning rate 0.001 has 1 of 6 seeds and is left out" in found.left_out


def diverged(method, seed, last=0.3):
    epochs = [{"epoch": 1.0, "step": 10, "loss": 1.0, "accuracy": last}]
    epochs.append({"epoch": 2.0, "step": 20, "loss": None, "accuracy": 0.1})
    losses = {"validation": {"loss": None, "accuracy": 0.1}, "test": {"loss": None, "accuracy": 0.1}}
    return run_of(method, seed, 0.1, record={"epochs": epochs, "metrics": losses})


class TestDivergedRuns:
    def test_count_with_their_last_evaluation(self):
        """A method that is a point better where it does not diverge, which it does in half its runs."""
        base = [run_of("wd uniform", s, 0.7 + noise(s)) for s in range(10)]
        fragile = [run_of("pwd linear", s, 0.71 + noise(s) + noise(1, s) / 10) for s in range(0, 10, 2)]
        assert only(analyse([*base, *fragile])).verdict == "better"
        study = analyse([*base, *fragile, *(diverged("pwd linear", s) for s in range(1, 10, 2))])
        found = only(study)
        assert found.paired.num_seeds == 10
        gains = [0.01 + noise(1, s) / 10 for s in range(0, 10, 2)]
        losses = [0.3 - 0.7 - noise(s) for s in range(1, 10, 2)]
        assert found.paired.mean == pytest.approx(np.mean(gains + losses))
        assert found.verdict == "worse"
        assert found.diverged == (5, 0)
        (result,) = [r for r in study.results["digits, default model"] if r.name == "pwd linear"]
        assert result.remarks == ["5 of 10 runs diverged"]
        assert study.counts["diverged"] == 5

    def test_out_of_memory_is_missing_data(self):
        records = grid("wd uniform", seeds=range(6)) + grid("pwd linear", seeds=range(1, 6))
        for decay in (0.01, 0.1):
            settings = {"timing": "pwd", "schedule": "linear", "decay": decay, "seed": 0}
            raw = failed_record("CUDA out of memory", **settings)
            records.append(Record.model_validate(raw))
        study = analyse(records)
        assert study.counts["failed"] == 2
        assert only(study).paired.num_seeds == 5
        assert only(study).paired.mean == 0.0

    @pytest.mark.parametrize(
        ("message", "outcome"),
        [("eval_loss is nan at step 3: training diverged", "diverged"), ("CUDA out of memory", "failed")],
    )
    def test_are_told_apart_from_other_failures(self, message, outcome):
        assert Record.model_validate(failed_record(message)).outcome == outcome


def test_a_part_does_not_look_like_the_whole():
    records = grid("wd uniform") + grid("pwd linear", gain=0.05, key=1)
    study = analyse(records[:13], plan_of(records))
    assert study.counts["planned"] == 20
    assert study.counts["missing"] == 7
    assert answers(study)[0].headline == "No answer yet: 13 of 20 planned runs are done."
    assert only(study).verdict == "undecided"


def test_changed_data_are_not_compared():
    def with_data(method, seed, test, rows="r"):
        data = {
            "num_classes": 10,
            "sizes": {"train": 100, "validation": 10, "test": 1000},
            "fingerprints": {"train": f"t{seed}", "validation": f"v{seed}", "test": rows},
        }
        return run_of(method, seed, test, record={"format": 2, "data": data})

    base = [with_data("wd uniform", s, 0.7 + noise(s)) for s in SEEDS]
    better = {s: 0.75 + noise(s) + noise(1, s) / 10 for s in SEEDS}
    same = analyse(base + [with_data("pwd linear", s, better[s]) for s in SEEDS])
    assert only(same).verdict == "better"
    other = analyse(base + [with_data("pwd linear", s, better[s], "another") for s in SEEDS])
    assert only(other).withheld == "the test images or labels of seed 0 differ between the runs"
    assert only(other).verdict == "undecided"


def test_a_range_over_the_rates_is_held_to_the_same_rules():
    """Changed data leave no verdict, and diverged runs are named, as in a comparison of accuracies."""
    question = Question(compare=["pwd linear"], measure="range", at="equal")
    changed = {"pairing": {"initial_weights": "w", "validation_rows": "others"}}
    records = grid("wd uniform") + grid("pwd linear", key=1, record=changed)
    found = only(analyse(records, questions=[question]))
    assert found.withheld == "the validation images or labels of seed 0 differ between the runs"
    records = [*grid("wd uniform"), *grid("pwd linear", key=1)[:-1], diverged("pwd linear", 4)]
    assert only(analyse(records, questions=[question])).diverged == (1, 0)


def test_seeds_may_have_test_images_of_their_own():
    """As with max_eval_samples, which draws by the seed; the runs of a seed share them."""

    def drawn(method, seed, test):
        prints = {"test": f"drawn by {seed}"}
        data = {"num_classes": 10, "sizes": {"test": 1000}, "fingerprints": prints}
        return run_of(method, seed, test, record={"format": 2, "data": data})

    base = [drawn("wd uniform", s, 0.7 + noise(s)) for s in SEEDS]
    found = only(analyse(base + [drawn("pwd linear", s, 0.75 + noise(s)) for s in SEEDS]))
    assert found.verdict == "better"
    assert found.over_images is None


def test_changed_rows_of_validation_in_format_1_are_not_compared():
    changed = {"pairing": {"initial_weights": "w", "validation_rows": "others"}}
    records = grid("wd uniform") + grid("pwd linear", gain=0.05)
    assert only(analyse(records)).verdict == "better"
    records = grid("wd uniform") + grid("pwd linear", gain=0.05, record=changed)
    assert (
        only(analyse(records)).withheld == "the validation images or labels of seed 0 differ between the runs"
    )


def test_without_a_test_split_there_is_no_verdict():
    records = [
        r.model_copy(update={"metrics": {"validation": r.metrics["validation"]}})
        for r in grid("wd uniform") + grid("pwd linear", gain=0.05, key=1)
    ]
    study = analyse(records)
    assert only(study).withheld == "no test split was read"
    assert study.notes[0] == "No test split was read: there are no verdicts."
    assert answers(study)[0].headline == "No answer: no test split was read."


def test_one_family_over_all_tasks():
    """A difference with p = 0.02 on one of six tasks is a finding on its own, and none among six."""
    shift = 0.0033
    differences = shift + 0.0021 * np.array([-1.2, -0.6, 0.0, 0.6, 1.2])
    records = []
    for task in range(6):
        extra = differences if task == 0 else np.array([0.01, -0.01, 0.005, -0.005, 0.0])
        for seed in SEEDS:
            base = 0.7 + noise(task, seed)
            records.append(run_of("wd uniform", seed, base, dataset_name=f"data-{task}"))
            records.append(run_of("pwd linear", seed, base + extra[seed], dataset_name=f"data-{task}"))
    alone = only(analyse(records[:10]))
    assert 0.01 < alone.p_difference < 0.05
    assert alone.verdict == "better"
    ((_, comparisons),) = analyse(records).primary
    assert len(comparisons) == 6
    assert comparisons[0].p_difference == pytest.approx(min(1.0, 6 * alone.p_difference))
    assert {c.verdict for c in comparisons} == {"undecided"}


class TestTheBaseline:
    records = grid("wd uniform", dataset_name="a") + grid("pwd linear", dataset_name="a", key=1)
    records += grid("l2 uniform", dataset_name="b") + grid("pwd linear", dataset_name="b", key=1)

    def test_asked_for_and_missing_is_an_error(self):
        with pytest.raises(
            BadInputError, match=r"unknown baseline 'wd uniform'.* on b, default model are l2"
        ):
            analyse(self.records, baseline="wd uniform")

    def test_of_one_question_may_be_missing_in_a_task(self):
        """As `pwd linear matched` in a context without schedules; missing everywhere, it is a mistake."""
        asked = Question(compare=["pwd linear"], to="l2 uniform")
        study = analyse(self.records, baseline="pwd linear", questions=[asked])
        missing, found = study.primary_comparisons
        assert missing.withheld == "there is no run of l2 uniform on a, default model"
        assert found.task == "b, default model"
        assert found.paired is not None
        with pytest.raises(BadInputError, match="unknown baseline 'l2 unifrom': did you mean 'l2 uniform'"):
            analyse(self.records[len(self.records) // 2 :], questions=[Question(to="l2 unifrom")])

    def test_is_never_replaced(self):
        ((_, comparisons),) = analyse(self.records).primary
        missing = [c for c in comparisons if c.task.startswith("b")]
        assert {c.to for c in comparisons} == {"wd uniform"}
        assert {c.withheld for c in missing} == {"there is no run of wd uniform on b, default model"}


class TestVerdicts:
    def compared(self, differences, margin=0.3):
        records = [run_of("wd uniform", s, 0.7) for s in range(len(differences))]
        records += [run_of("pwd linear", s, round(0.7 + d, 4)) for s, d in enumerate(differences)]
        return only(analyse(records, margin=margin))

    def test_cannot_tell_is_not_equality(self):
        wide = self.compared([0.03, -0.005, 0.04, 0.0, 0.011])
        assert wide.verdict == "undecided"
        assert wide.difference.low < 0.0 < wide.difference.high
        assert "undecided, +1.52" in sentence(wide)
        assert f"could have shown a difference of {100 * wide.detectable:.2g} points" in sentence(wide)
        expected = np.std([0.03, -0.005, 0.04, 0.0, 0.011], ddof=1) / 5**0.5 * smallest_shift(5)
        assert wide.detectable == pytest.approx(expected, rel=1e-3)

    def test_equivalence_is_shown_by_two_one_sided_tests(self):
        narrow = self.compared([0.0004, -0.0004, 0.0002, -0.0002, 0.0])
        assert narrow.verdict == "equivalent"
        assert self.compared([0.0004, -0.0004, 0.0002, -0.0002, 0.0], margin=0.02).verdict == "undecided"

    def test_ties_have_the_variance_of_whole_images(self):
        """Five equal differences of one image in 200: floor 1 / (200 sqrt 6), t = 5.48 and p = 0.0054."""
        tied = self.compared([0.005] * 5)
        assert tied.difference.low == pytest.approx(0.005 - 2.7764 * 0.005 / 6**0.5 / 5**0.5, abs=1e-6)
        assert tied.p_difference == pytest.approx(0.0054, abs=1e-4)
        assert tied.difference.low > 0.0

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_no_verdict_below_five_seeds(self, number):
        few = self.compared([0.02, 0.0201, 0.0199, 0.02][:number])
        assert few.verdict == "undecided"
        assert few.withheld == f"{number} seed{'s' * (number > 1)}, fewer than 5"


def test_a_grid_against_one_setting_pays_for_its_chances():
    """The best of 20 equal settings is +0.65 points better, by luck: p = 0.014 if chances do not count."""
    decays = tuple(0.01 * (i + 1) for i in range(20))
    study = analyse(grid("wd uniform", (0.1,), key=1012) + grid("pwd linear", decays, key=12))
    found = only(study)
    assert found.tried == (20, 1)
    alone = stats.ttest_1samp(list(found.by_seed.values()), 0.0).pvalue
    assert alone == pytest.approx(0.0144, abs=1e-4)
    assert found.p_difference == pytest.approx(20 * alone)
    assert found.verdict == "undecided"
    assert study.notes[0].startswith(
        "The methods did not choose from equally many settings (pwd linear 20, wd uniform 1)"
    )


def test_edges_and_seeds_of_one_side_are_said():
    records = grid("wd uniform", (0.1, 1.0), seeds=range(6)) + [
        run_of("pwd linear", s, 0.7 + 0.1 * i, weight_decay=decay)
        for i, decay in enumerate((0.1, 1.0, 10.0))
        for s in (*SEEDS, 77)
    ]
    study = analyse(records)
    (result,) = [r for r in study.results["digits, default model"] if r.name == "pwd linear"]
    assert result.remarks == ["the best decay rate is the highest of the grid"]
    assert "only pwd linear has seeds 77, which are left out" in only(study).left_out
    assert "only wd uniform has seeds 5, which are left out" in only(study).left_out


def test_intervals_over_seeds_and_over_test_images():
    """Two images of 100 are right in every run of one method and in none of the other's: +2 points.

    Over seeds that is certain; over test images its standard error is 1.4 points.
    """

    def with_images(method, seed, right):
        bits = np.zeros(100, np.uint8)
        bits[:right] = 1
        data = {"num_classes": 2, "sizes": {"test": 100}, "fingerprints": {"test": "x"}}
        correct = {"test": base64.b64encode(np.packbits(bits)).decode()}
        return run_of(method, seed, right / 100, record={"format": 2, "data": data, "correct": correct})

    study = analyse(
        [with_images("wd uniform", s, 70) for s in SEEDS] + [with_images("pwd linear", s, 72) for s in SEEDS]
    )
    found = only(study)
    assert found.verdict == "better"
    per_image = np.array([1.0] * 2 + [0.0] * 98)
    assert found.image_variance == pytest.approx(per_image.var(ddof=1) / 100)
    assert found.difference.low > 0.0 > found.over_images.low
    assert "Over other test images of this kind it may be none" in sentence(found)


def test_the_forest_plot_shows_the_interval_of_the_verdict_and_no_other(monkeypatch):
    """A bootstrap of these five differences, +0.12 to +3.02, would exclude 0; the t interval does not."""
    drawn = []
    monkeypatch.setattr("hf_lpwd.study.forest.saved", lambda canvas, *_: drawn.append(canvas.axes[0]))
    records = [run_of("wd uniform", s, 0.7) for s in SEEDS]
    differences = [0.03, -0.005, 0.04, 0.0, 0.011]
    found = only(analyse(records + [run_of("pwd linear", s, 0.7 + d) for s, d in enumerate(differences)]))
    draw_forest([found], "f", "F", with_task=False)
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval()
    (bar,) = [line.get_xdata() for line in drawn[0].lines if len(set(line.get_xdata())) > 1]
    assert bar == pytest.approx([100 * interval.low, 100 * interval.high])


def test_accuracies_stay_within_0_and_100():
    records = [run_of("wd uniform", s, a) for s, a in enumerate([1.0, 1.0, 0.9, 1.0, 1.0])]
    (result,) = analyse(records).results["digits, default model"]
    assert result.test.high == 1.0
    assert result.test.low < 1.0


class TestContrasts:
    """pwd is 1 point better than wd at all of 2 schedules x 3 rates; single cells are noisier."""

    records = [
        run_of(
            f"{timing} {schedule}", s, 0.7 + 0.01 * t + noise(s) + noise(t, i, d, s), weight_decay=10.0**-d
        )
        for t, timing in enumerate(("wd", "pwd"))
        for i, schedule in enumerate(("uniform", "linear", "linear matched"))
        for d in range(3)
        for s in range(6)
    ]  # fmt: skip

    def test_timing_over_schedules_and_rates(self):
        study = analyse(self.records)
        (timing,) = [c for c in study.contrasts if c.name == "decay_timing=pwd"]
        assert timing.tried == (9, 9)
        gains = [
            np.mean([
                0.01 + noise(1, i, d, s) - noise(0, i, d, s) for i in range(3) for d in range(3)
            ])
            for s in range(6)
        ]  # fmt: skip
        assert timing.difference.value == pytest.approx(np.mean(gains))
        assert timing.paired.error == pytest.approx(np.std(gains, ddof=1) / 6**0.5)
        assert timing.verdict == "better"

    def test_schedule_at_equal_budget_and_budget(self):
        names = {(c.name, c.to) for c in analyse(self.records).contrasts}
        matched = "layer_schedule=linear, match_decay_budget=True"
        assert (matched, "layer_schedule=uniform, match_decay_budget=False") in names
        assert ("layer_schedule=linear, match_decay_budget=False", matched) in names

    def test_a_question_on_the_range_over_rates(self):
        """Less is better: a method that loses nothing over the rates against one that loses 4 points."""
        steep = [
            run_of("wd uniform", s, 0.7 - 0.02 * d + noise(s), weight_decay=10.0**-d)
            for d in range(3)
            for s in SEEDS
        ]
        flat = [
            run_of("pwd linear", s, 0.7 - 0.001 * d + noise(s), weight_decay=10.0**-d)
            for d in range(3)
            for s in SEEDS
        ]
        question = Question(compare=["pwd linear"], measure="range", at="equal")
        found = only(analyse(steep + flat, plan_of(steep + flat, [question])))
        assert found.difference.value == pytest.approx(0.038)
        assert found.verdict == "better"


def test_controls_stand_in_every_report():
    records = grid("wd uniform", gain=0.05) + grid("no decay", (0.0,), key=3)
    records += [
        run_of(
            "noise floor", r.seed, r.metrics["test"].accuracy + 0.001, weight_decay=r.settings.weight_decay
        )
        for r in grid("wd uniform", gain=0.05)
    ]
    positive, floor = analyse(records).controls["digits, default model"]
    assert (positive.name, positive.to, positive.verdict) == ("wd uniform", "no decay", "better")
    assert floor.difference.value == pytest.approx(0.001)
    positive, floor = analyse(grid("wd uniform")).controls["digits, default model"]
    assert positive.withheld == "there is no run of no decay on digits, default model"
    assert floor.withheld == "there is no run of noise floor on digits, default model"


def test_controls_and_baselines_do_not_cost_the_primary_question_its_power():
    records = grid("wd uniform") + grid("pwd linear", gain=0.02, key=1)
    alone = only(analyse(records))
    more = analyse(
        records + grid("l2 sp", key=4) + grid("head only", key=5) + grid("no decay", (0.0,), key=6)
    )
    assert only(more).p_difference == alone.p_difference
    assert [c.name for c in more.baselines] == ["head only", "l2 sp"]


def test_pooled_over_tasks():
    records = [
        run_of(method, s, 0.5 + 0.1 * t + 0.01 * s, dataset_name=f"d{t}")
        for method in ("wd uniform", "pwd linear")
        for t in range(4)
        for s in SEEDS
    ]
    pooled = analyse(records).pooled
    scores = np.sort([0.5 + 0.1 * t + 0.01 * s for t in range(4) for s in SEEDS])
    assert pooled["pwd linear"].value == pytest.approx(scores[5:15].mean())
    assert pooled["pwd linear"].low < pooled["pwd linear"].value < pooled["pwd linear"].high
    alone = analyse(records[:5])
    assert (alone.pooled, draw_profile(alone.scores)) == ({}, None)


def test_the_profile_over_tasks_is_a_figure_of_the_report(tmp_path):
    """On task t the runs reach 0.5 + 0.1 t + 0.01 s; those of pwd 0.1 more on task 1."""
    records = [
        run_of(method, s, 0.5 + 0.1 * (t + (t == 1) * (method[0] == "p")) + 0.01 * s, dataset_name=f"d{t}")
        for method in ("wd uniform", "pwd linear")
        for t in range(3)
        for s in SEEDS
    ]
    figure = draw_profile(analyse(records).scores)
    assert figure.alt == (
        "Fraction of runs above each test accuracy. At most half are above: wd uniform 62.0; pwd linear 71.0."
    )
    assert figure == draw_profile(analyse(records).scores)
    write_records([record.model_dump(exclude_unset=True) for record in records], tmp_path / "runs")
    page = Path(write_report(str(tmp_path / "runs"), str(tmp_path / "out"))).read_text()
    assert base64.b64encode(figure.svg).decode() in page
    assert (tmp_path / "out" / "figures" / "profile.svg").read_bytes() == figure.svg


PLACE = {"device": "cuda", "device_name": "A100", "threads": 1, "commit": "version 1"}


def on_devices(method, number):
    """Six runs; a batch of a run is divided over all devices, each of which gets a whole one."""
    place = PLACE if number is None else PLACE | {"devices": number}
    return [run_of(method, s, 0.8 + noise(s), record={"environment": place}) for s in range(6)]


def test_runs_on_other_numbers_of_devices_are_not_compared():
    study = analyse(on_devices("wd uniform", 1) + on_devices("pwd linear", 2))
    found = only(study)
    reason = "the runs of seed 0 used 1 and 2 devices, and so batches of different sizes"
    assert (found.withheld, found.verdict) == (reason, "undecided")
    assert "The runs differ in devices: 1, 2." in study.notes
    for number in (2, None):
        same = only(analyse(on_devices("wd uniform", number) + on_devices("pwd linear", number)))
        assert same.verdict == "equivalent"


@pytest.mark.parametrize(("form", "outcome"), [(1, "diverged"), (2, "failed")])
def test_only_the_first_format_reads_from_a_message_that_a_run_diverged(form, outcome):
    """A file in a folder called nan is not found: a failure, not a run with accuracy 0."""
    failed = failed_record("No such file or directory: '/data/nan/x.png'") | {"format": form}
    assert Record.model_validate(failed).outcome == outcome
