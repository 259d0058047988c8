from __future__ import annotations

import logging
from functools import partial

import datasets
import numpy as np
import pytest
from encoded_images import CLASSES, load_from_parquet, reds, table

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.labels import stratified_cut, stratified_subset
from hf_lpwd.vision.data.splits import load_splits

MISSING = "labels are missing (empty or -1), the first in row {}: --skip_unlabelled leaves these rows out"


@pytest.fixture
def load(tmp_path):
    return partial(load_from_parquet, tmp_path)


def test_stratified_cut_keeps_proportions_and_single_rows():
    labels = np.array([0] * 40 + [1] * 20 + [2])
    rest, cut = stratified_cut(labels, 15, seed=5)
    assert np.bincount(labels[cut], minlength=3).tolist() == [10, 5, 0]
    assert np.sort(np.concatenate([rest, cut])).tolist() == list(range(61))
    assert rest.tolist() == sorted(rest)
    assert cut.tolist() == sorted(cut)


def test_stratified_cut_smaller_than_the_classes_says_so(caplog):
    labels = np.arange(10).repeat(2)
    with caplog.at_level(logging.WARNING):
        rest, cut = stratified_cut(labels, 3, seed=0)
    assert (len(rest), len(cut)) == (17, 3)
    assert caplog.messages == ["3 of 20 rows for 10 classes: not stratified"]


@pytest.mark.parametrize("size", [1, 4, 10, 29, 38])
@pytest.mark.parametrize("seed", range(4))
def test_a_cut_leaves_a_row_of_every_class(size, seed):
    labels = np.random.default_rng(seed).permutation(
        np.repeat(np.arange(12), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 10, 10])
    )
    rest, cut = stratified_cut(labels, size, seed)
    assert len(cut) == size
    assert np.sort(np.concatenate([rest, cut])).tolist() == list(range(50))
    assert np.unique(labels[rest]).tolist() == list(range(12))


def test_a_cut_that_the_classes_cannot_spare(caplog):
    labels = np.arange(10).repeat(2)
    with caplog.at_level(logging.WARNING):
        rest, cut = stratified_cut(labels, 15, seed=0)
    assert (np.unique(labels[rest]).tolist(), len(cut)) == (list(range(10)), 10)
    assert caplog.messages[0] == "10 of 20 rows are cut off instead of 15: every class keeps one"
    with pytest.raises(BadInputError, match=r"^3 training images of 3 classes: none can be cut off"):
        stratified_cut(np.arange(3), 1, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_a_subset_has_a_row_of_every_class_if_it_can(seed):
    labels = np.repeat(np.arange(4), [1, 1, 20, 20])
    subset = stratified_subset(labels, 5, seed)
    assert (len(set(subset)), np.unique(labels[subset]).tolist()) == (5, [0, 1, 2, 3])
    assert len(np.unique(labels[stratified_subset(labels, 3, seed)])) == 3


def test_unlabelled_rows_are_skipped_on_request_and_counted(load):
    splits = load(
        {"train": table([0, -1, 1, 0, 1, -1], feature=CLASSES), "test": table([1, -1, 0], feature=CLASSES)},
        skip_unlabelled=True,
        train_val_split=0.5,
    )
    assert sorted([*splits.rows["train"], *splits.rows["validation"]]) == [0, 2, 3, 4]
    assert splits.rows["test"].tolist() == [0, 2]
    assert (reds(splits.test), splits.test["label"][:]) == ([0, 2], [1, 0])
    assert splits.facts.left_out == {"row of train without a label": 2, "row of test without a label": 1}


@pytest.mark.parametrize(
    ("labels", "names", "encoded"),
    [
        (["dog", "cat", "dog", "ant"], ["ant", "cat", "dog"], [2, 1, 2, 0]),
        ([3, 1, 3, 7], ["1", "3", "7"], [1, 0, 1, 2]),
        ([10, 9, 10, 9], ["9", "10"], [1, 0, 1, 0]),
        (["10", "9", "10", "9"], ["9", "10"], [1, 0, 1, 0]),
        ([10.0, 9.0, 10.0, 9.0], ["9", "10"], [1, 0, 1, 0]),
        (["10.0", "9", "10", "9.0"], ["9", "10"], [1, 0, 1, 0]),
        (["007", "7", "10", "7"], ["007", "10", "7"], [0, 2, 1, 2]),
        (["None", "NA", "nan", "NA"], ["NA", "None", "nan"], [1, 0, 2, 0]),
        ([True, False, True, False], ["False", "True"], [1, 0, 1, 0]),
    ],
)
def test_other_labels_become_classes(load, labels, names, encoded):
    splits = load({"train": table(labels), "validation": table(labels), "test": table(labels)})
    assert splits.class_names == names
    for part in (splits.train, splits.validation, splits.test):
        assert part["label"][:] == encoded
        assert part.features["label"] == datasets.ClassLabel(names=names)
        assert reds(part) == [0, 1, 2, 3]


def test_labels_that_are_fractions(load):
    with pytest.raises(BadInputError) as error:
        load({"train": table([1.0, 0.5] * 2)})
    assert str(error.value) == (
        "label column 'label' holds 0.5 (train row 1): labels must be text, whole numbers or classes"
    )


@pytest.mark.parametrize("missing", [[-1, -1], [None, None]])
def test_an_unlabelled_test_split_counts_as_none(load, missing, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load({"train": table([0, 1] * 10, feature=CLASSES), "test": table(missing, feature=CLASSES)})
    assert splits.test is None
    assert splits.source_sizes == {"train": 20, "test": 2}
    assert splits.facts.left_out == {"row of test without a label": 2}
    assert caplog.messages == ["the test split (test) has no labels and is not used"]


@pytest.mark.parametrize(
    ("split", "train", "other", "message"),
    [
        (
            "test",
            ["cat", "dog"] * 5,
            ["cat", "dogs", "dogs"],
            "test: 2 of 3 labels are none of the 2 classes (cat, dog), the first in row 1: "
            "unknown label 'dogs': did you mean 'dog'?",
        ),
        (
            "validation",
            [4, 5] * 5,
            [4, 6],
            "validation: 1 of 2 labels are none of the 2 classes (4, 5), the first in row 1: "
            "unknown label '6'",
        ),
        ("test", ["a", "b"] * 5, ["a", None], f"test: 1 of 2 {MISSING.format(1)}"),
        ("test", ["a", None] * 5, ["a", "a"], f"train: 5 of 10 {MISSING.format(1)}"),
        ("test", [7, -1, 8, -1], [7, 8], f"train: 2 of 4 {MISSING.format(1)}"),
        ("test", ["a", "b", "b", ""], ["a", "b"], f"train: 1 of 4 {MISSING.format(3)}"),
        ("test", [float("nan"), 1.0, 0.0, 1.0], [1.0, 0.0], f"train: 1 of 4 {MISSING.format(0)}"),
    ],
)
def test_a_label_outside_the_classes(load, split, train, other, message):
    with pytest.raises(BadInputError) as error:
        load({"train": table(train), split: table(other)})
    assert str(error.value) == message


def test_an_integer_outside_the_named_classes(load, monkeypatch):
    with pytest.raises(BadInputError) as error:
        load({"train": table([0, 1, 0, -1], feature=CLASSES)})
    assert str(error.value) == f"train: 1 of 4 {MISSING.format(3)}"
    features = datasets.Features({"image": datasets.Image(), "label": CLASSES})
    data = table([0, 1, 2, 0]).data.table.replace_schema_metadata(None)
    broken = datasets.Dataset(data, info=datasets.DatasetInfo(features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.DatasetDict({"train": broken}))
    with pytest.raises(BadInputError, match=r"^train row 2: label 2 is none of the 2 classes$"):
        load_splits(DataTrainingArguments(dataset_name="a/b"), seed=0)


@pytest.mark.parametrize(
    ("labels", "arguments"), [([1] * 6, {}), ([1], {}), ([0, 1] * 5, {"max_train_samples": 1})]
)
def test_one_class_only(load, labels, arguments):
    with pytest.raises(
        BadInputError, match=r"the training data has one class only \('(cat|dog)'\); a classifier"
    ):
        load({"train": table(labels, feature=CLASSES)}, **arguments)


def test_max_samples_are_drawn_by_seed_and_class(load):
    labels = [0] * 60 + [1] * 20
    data = {name: table(labels, feature=CLASSES) for name in ("train", "validation", "test")}
    splits = load(data, max_train_samples=8, max_eval_samples=4)
    assert np.bincount(splits.train["label"][:]).tolist() == [6, 2]
    assert np.bincount(splits.validation["label"][:]).tolist() == [3, 1]
    assert np.bincount(splits.test["label"][:]).tolist() == [3, 1]
    assert reds(splits.train) == splits.rows["train"].tolist()
    assert load(data, max_train_samples=8).rows["train"].tolist() == splits.rows["train"].tolist()
    assert load(data, seed=1, max_train_samples=8).rows["train"].tolist() != splits.rows["train"].tolist()
