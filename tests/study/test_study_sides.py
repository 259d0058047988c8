"""The sides of a question: each is one run a seed and setting, or refused."""

import numpy as np
import pytest
from study_records import run_of

from hf_lpwd.messages import BadInputError
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.plan import Question

RWD = {"decay_timing": "rwd"}


def runs(method, gain=0.0, **changes):
    return [
        run_of(method, seed, 0.8 + gain + np.random.default_rng(seed).normal(0.0, 0.001), **changes)
        for seed in range(6)
    ]


def answer(records, side, to="wd uniform", at="equal"):
    question = Question(compare=[side], to=to, at=at)
    ((_, (found,)),) = analyse(records, questions=[question]).primary
    return found


def refusal(*question):
    with pytest.raises(BadInputError) as error:
        answer(*question)
    return str(error.value)


END = "give that side of the question as settings that say which"


class TestSeveralRunsOfOneSeed:
    """Such a side kept the run that was read last: +10 points in one order, 0 in the other."""

    @pytest.mark.parametrize("at", ["equal", "best"])
    def test_of_a_side_of_settings(self, at):
        records = runs("wd uniform") + runs("rwd linear", 0.1) + runs("rwd uniform")
        assert refusal(records, RWD, "wd uniform", at) == (
            "decay_timing=rwd stands for several runs of seed 0, which differ in layer_schedule (linear and "
            f"uniform): {END}"
        )
        found = answer(records, {**RWD, "layer_schedule": "linear"}, "wd uniform", at)
        assert (found.verdict, round(found.paired.mean, 9)) == ("better", 0.1)

    def test_where_only_the_other_side_names_the_rate(self):
        records = (
            runs("wd uniform", weight_decay=0.0) + runs("rwd uniform") + runs("rwd uniform", weight_decay=1.0)
        )
        assert refusal(records, RWD, {"decay_timing": "wd", "weight_decay": 0.0}) == (
            "decay_timing=rwd stands for several runs of seed 0, which differ in weight_decay (0.1 and 1.0): "
            f"{END}"
        )

    @pytest.mark.parametrize("at", ["equal", "best"])
    def test_of_a_method_on_tasks_that_the_other_side_joins(self, at):
        records = [
            run for images in (100, 200) for run in runs("wd uniform", images / 2e3, max_train_samples=images)
        ]
        assert refusal(records, {"max_train_samples": 100}, "wd uniform", at) == (
            "wd uniform stands for several runs of seed 0, which differ in max_train_samples (100 and 200): "
            f"{END}"
        )
        found = answer(records, {"max_train_samples": 100}, {"max_train_samples": 200}, at)
        assert round(found.paired.mean, 9) == -0.05

    def test_a_method_by_its_name_on_one_of_the_joined_tasks(self):
        records = runs("wd uniform", max_train_samples=200) + runs("pwd linear", 0.1, max_train_samples=100)
        found = answer(records, {"max_train_samples": 100}, "wd uniform", "best")
        assert round(found.paired.mean, 9) == 0.1


class TestTwoRecordsOfOneRun:
    """Of one method, setting and seed the record that was read last took the other's place."""

    def test_of_the_same_number_as_weight_decay_and_as_total_decay(self):
        records = runs("pwd linear") + runs("pwd linear", 0.1, weight_decay=None, total_decay=0.1)
        with pytest.raises(BadInputError) as error:
            analyse([*records, *runs("wd uniform")])
        assert str(error.value) == (
            f"the records {records[0].id} and {records[6].id} are both pwd linear at decay 0.1, learning "
            "rate 0.001, seed 0, but differ in total_decay (not given and 0.1), weight_decay (0.1 and None): "
            "report them apart"
        )

    def test_of_one_name_in_two_files(self):
        both = [
            run.model_copy(update={"method": "shuffled", "task": {"file": file}})
            for file, rates in (("first", "2,0,1"), ("second", "0,2,1"))
            for run in runs("wd uniform", layer_schedule=rates)
        ]
        with pytest.raises(BadInputError) as error:
            analyse([*runs("wd uniform"), *both])
        assert str(error.value) == (
            f"the records {both[0].id} of first and {both[6].id} of second are both shuffled at decay 0.1, "
            "learning rate 0.001, seed 0, but differ in layer_schedule (2,0,1 and 0,2,1): report them apart"
        )
