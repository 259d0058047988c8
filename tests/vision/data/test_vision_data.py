from __future__ import annotations

from functools import partial

import datasets
import numpy as np
import pytest
from encoded_images import CLASSES, load_from_parquet, red, reds, table
from sklearn.datasets import load_digits as sklearn_digits

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.digits import load_digits
from hf_lpwd.vision.data.labels import stratified_cut
from hf_lpwd.vision.data.splits import load_splits


@pytest.fixture
def load(tmp_path):
    return partial(load_from_parquet, tmp_path)


def test_without_arguments_the_digits_are_loaded():
    splits = load_splits(DataTrainingArguments(), seed=3)
    assert splits.name == "digits"
    assert splits.class_names == [str(digit) for digit in range(10)]
    assert (splits.image_column, splits.label_column) == ("image", "label")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1222, 216, 359)
    assert splits.sources == {"train": "train", "validation": "train", "test": "test"}
    assert splits.source_sizes == {"train": 1438, "test": 359}
    whole = np.sort(np.concatenate([splits.rows["train"], splits.rows["validation"]]))
    assert whole.tolist() == list(range(1438))
    counts = np.bincount(splits.validation["label"][:], minlength=10)
    expected = np.bincount(load_digits()["train"]["label"][:]) * 0.15
    assert np.abs(counts - expected).max() <= 1


def test_digits_are_scaled_to_8_bit_and_their_test_split_never_changes():
    digits = sklearn_digits()
    data = load_digits()
    expected_rows = stratified_cut(digits.target, 359, 0)[1]
    assert data["test"]["label"][:] == digits.target[expected_rows].tolist()
    for image, row in zip(data["test"]["image"], expected_rows, strict=True):
        assert image.mode == "L"
        assert (np.asarray(image) == np.rint(digits.images[row] * 255 / 16)).all()
    first, second = (load_splits(DataTrainingArguments(), seed=seed) for seed in (0, 1))
    assert first.rows["test"].tolist() == second.rows["test"].tolist()
    assert first.rows["validation"].tolist() != second.rows["validation"].tolist()
    again = load_splits(DataTrainingArguments(), seed=0)
    assert again.rows["validation"].tolist() == first.rows["validation"].tolist()


def test_train_and_test_only_cuts_the_validation_from_train(load):
    splits = load({"train": table([0, 1] * 10, feature=CLASSES), "test": table([1, 0], feature=CLASSES)})
    assert splits.class_names == ["cat", "dog"]
    assert np.bincount(splits.validation["label"][:]).tolist() in ([2, 1], [1, 2])
    assert reds(splits.validation) == splits.rows["validation"].tolist()
    assert reds(splits.train) == splits.rows["train"].tolist()
    assert splits.test["label"][:] == [1, 0]


def test_an_only_split_of_any_name_is_the_training_data(monkeypatch):
    data = datasets.DatasetDict({"everything": table([0, 1] * 10, feature=CLASSES)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    splits = load_splits(DataTrainingArguments(dataset_name="a/b"), seed=0)
    assert splits.sources == {"train": "everything", "validation": "everything"}
    assert (len(splits.train), len(splits.validation)) == (17, 3)


def test_no_training_split(monkeypatch):
    data = datasets.DatasetDict({"test": table([0, 1], feature=CLASSES)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    with pytest.raises(BadInputError, match=r"^a/b has no training split; it has test$"):
        load_splits(DataTrainingArguments(dataset_name="a/b"), seed=0)


@pytest.mark.parametrize(
    ("columns", "arguments", "found"),
    [
        (("img", "fine_label"), {}, ("img", "fine_label")),
        (("image", "labels"), {}, ("image", "labels")),
        (("photo", "kind"), {}, ("photo", "kind")),
        (("photo", "kind"), {"image_column_name": "photo", "label_column_name": "kind"}, ("photo", "kind")),
    ],
)
def test_columns_are_found_or_named(load, columns, arguments, found):
    splits = load({"train": table([0, 1] * 4, *columns, feature=CLASSES)}, **arguments)
    assert (splits.image_column, splits.label_column) == found


def test_a_missing_column_is_named_with_the_nearest(load):
    data = {"train": table([0, 1] * 4, "photo", "kind", feature=CLASSES)}
    with pytest.raises(BadInputError) as error:
        load(data, image_column_name="foto")
    assert str(error.value) == (
        "unknown image column 'foto': did you mean 'photo'? (the dataset has photo, kind)"
    )


def test_no_label_column_found(load):
    with pytest.raises(BadInputError) as error:
        load({"train": table([0, 1] * 4, "image", "kind")})
    assert str(error.value) == (
        "no label column found: the dataset has image, kind; name it with label_column_name"
    )


def test_a_column_that_holds_no_images(load):
    data = datasets.Dataset.from_dict({"image": [0.5] * 4, "label": [0, 1] * 2})
    with pytest.raises(BadInputError, match=r"^column 'image' holds Value.*not images"):
        load({"train": data})


def test_parquet_files_without_huggingface_metadata(tmp_path):
    import pandas

    cells = [{"bytes": red(row), "path": None} for row in range(8)]
    for part in range(2):
        frame = pandas.DataFrame({"image": cells[4 * part : 4 * part + 4], "label": ["x", "y"] * 2})
        frame.to_parquet(tmp_path / f"part-{part}.parquet")
    args = DataTrainingArguments(dataset_name=str(tmp_path / "part-*.parquet"), train_val_split=0.5)
    splits = load_splits(args, seed=0, cache_dir=str(tmp_path / "cache"))
    assert splits.class_names == ["x", "y"]
    assert sorted(reds(splits.train) + reds(splits.validation)) == list(range(8))


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    for row, name in enumerate(("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(red(row))
    monkeypatch.setenv("HOME", str(tmp_path))
    args = DataTrainingArguments(dataset_name="~/pets", train_val_split=0.5)
    assert load_splits(args, seed=0, cache_dir=str(tmp_path / "cache")).class_names == ["cat", "dog"]


def test_a_glob_over_train_and_test_files_is_refused(tmp_path):
    for name in ("train-0", "test-0"):
        table([0, 1]).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(
        BadInputError, match=r"matches files of several splits \(test, train\): name the folder$"
    ):
        load_splits(DataTrainingArguments(dataset_name=str(tmp_path / "*.parquet")), seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": "./nowhere"}, "no such folder: ./nowhere"),
        ({"dataset_name": "~/no/where"}, "no such folder: ~/no/where"),
        ({"dataset_name": "a/b/c"}, "no such folder: a/b/c"),
        ({"dataset_name": "nowhere-*.parquet"}, "no such file: nowhere-*.parquet"),
        ({"train_dir": "nowhere"}, "no such folder: nowhere"),
    ],
)
def test_a_path_that_is_not_there(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInputError) as error:
        load_splits(DataTrainingArguments(**arguments), seed=0)
    assert str(error.value) == message


def test_a_data_set_that_the_hub_does_not_give(tmp_path):
    with pytest.raises(BadInputError) as error:
        load_splits(DataTrainingArguments(dataset_name="nobody/nothing"), seed=0, cache_dir=str(tmp_path))
    message = str(error.value)
    assert message.startswith("dataset 'nobody/nothing' cannot be loaded: ")
    assert "\n" not in message
    assert error.value.__cause__ is not None


def test_an_error_never_shows_the_token(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError(f"401 for Bearer {kwargs['token']} and hf_OtherToken\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(BadInputError) as error:
        load_splits(DataTrainingArguments(dataset_name="a/b"), seed=0, token="secret")
    assert str(error.value) == (
        "dataset 'a/b' cannot be loaded: there is no such dataset here, and of the Hub: "
        "401 for Bearer *** and hf_***"
    )
