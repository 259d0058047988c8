"""Files of rows: CSV, TSV, JSON and parquet with paths, URLs, base64 or bytes of images."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pandas
import pytest
import torch
from encoded_images import pngs, red, reds, table
from transformers import ViTImageProcessor

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.images import BadImageError, ImageDataset
from hf_lpwd.vision.data.splits import load_splits


def load(path, **arguments):
    args = DataTrainingArguments(dataset_name=str(path), train_val_split=0.5, **arguments)
    return load_splits(args, seed=0, cache_dir=str(path.parent / ".cache"))


def rows(splits) -> list[tuple[int, str]]:
    """Returns shade and class of each image."""
    found = []
    for data in (splits.train, splits.validation):
        labels = [splits.class_names[label] for label in data[splits.label_column]]
        found += zip(reds(data), labels, strict=True)
    return sorted(found)


@pytest.fixture
def folder(tmp_path):
    """Four images in `tmp_path/data/images`, which is not the working directory."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for row in range(4):
        (tmp_path / "data" / "images" / f"{row}.png").write_bytes(red(50 + row))
    return tmp_path / "data"


EXPECTED = [(50, "a"), (51, "b"), (52, "a"), (53, "b")]
PATHS = [f"images/{row}.png" for row in range(4)]
LINES = [f"{path}SEP{label}" for path, label in zip(PATHS, "abab", strict=True)]


@pytest.mark.parametrize(
    ("name", "separator", "prefix", "end"),
    [
        ("a.csv", ",", "", "\n"),
        ("a.CSV", ",", "\ufeff", "\r\n"),
        ("a.csv", ";", "", "\n"),
        ("a.csv", "\t", "", "\n\n"),
        ("a.csv", "|", "", "\n"),
        ("a.csv", ", ", "", "\n"),
        ("a.tsv", "\t", "\ufeff", "\n"),
        ("[1] a, b.tsv", "\t", "", "\n"),
    ],
)
def test_csv_and_tsv_as_programs_write_them(folder, name, separator, prefix, end):
    text = end.join(["imageSEPlabel", *LINES, ""]).replace("SEP", separator)
    (folder / name).write_bytes((prefix + text).encode())
    assert rows(load(folder / name)) == EXPECTED


@pytest.mark.parametrize(
    "name", ["lines.json", "lines.jsonl", "list.json", "columns.json", "train_test.parquet"]
)
def test_paths_start_at_the_folder_of_the_file(folder, name):
    records = [{"image": path, "label": label} for path, label in zip(PATHS, "abab", strict=True)]
    if name.endswith(".parquet"):
        pandas.DataFrame(records).to_parquet(folder / name)
    else:
        text = {
            "lines": "\n".join(map(json.dumps, records)),
            "list": json.dumps(records, indent=2),
            "columns": json.dumps({"image": PATHS, "label": list("abab")}),
        }
        (folder / name).write_text(text[name.split(".")[0]])
    assert rows(load(folder / name)) == EXPECTED


def test_other_ways_to_write_a_path(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "images")
    (folder / "a.csv").write_text(
        f"image,label\nimages\\0.png,a\n~/images/1.png,b\n{folder}/images/2.png,a\n3.png,b\n"
    )
    assert rows(load(folder / "a.csv")) == EXPECTED


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["None", "NA", "NA", "None"], ["NA", "None"]),
        (["007", "010", "007", "010"], ["007", "010"]),
        (["10", "9", "10", "9"], ["9", "10"]),
        (["1.0", "0.0", "1.0", "0.0"], ["0", "1"]),
        (["true", "false", "true", "false"], ["false", "true"]),
        (["2021-01-01", "2021-02-01", "2021-01-01", "2021-02-01"], ["2021-01-01", "2021-02-01"]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_labels_stay_what_they_are(folder, labels, classes, name):
    if name == "a.csv":
        text = "\n".join(["image,label", *map(",".join, zip(PATHS, labels, strict=True))])
    else:
        records = [{"image": path, "label": label} for path, label in zip(PATHS, labels, strict=True)]
        text = "\n".join(map(json.dumps, records))
    (folder / name).write_text(text)
    assert load(folder / name).class_names == classes


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_images_in_base64(tmp_path, prefix, name):
    large = prefix + base64.b64encode(pngs(1, 300, 300)[0]).decode()
    assert len(large) > 131_072  # more than a value that Python's csv reads by default
    texts = [prefix + base64.b64encode(red(50 + row)).decode() for row in range(4)] + [large]
    frame = pandas.DataFrame({"image": texts, "label": [*"abab", "b"]})
    {
        "a.csv": partial(frame.to_csv, index=False),
        "a.jsonl": partial(frame.to_json, orient="records", lines=True),
        "a.parquet": frame.to_parquet,
    }[name](tmp_path / name)
    found = rows(load(tmp_path / name))
    assert [row for row in found if row in EXPECTED] == EXPECTED
    assert len(found) == 5


def test_images_as_bytes(tmp_path):
    frame = pandas.DataFrame({"image": [red(50 + row) for row in range(4)], "label": list("abab")})
    frame.to_parquet(tmp_path / "a.parquet")
    assert rows(load(tmp_path / "a.parquet")) == EXPECTED


def test_images_by_url(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        lines = [f"{address}/{path},{label}" for path, label in zip(PATHS, "abab", strict=True)]
        (folder / "a.csv").write_text("\n".join(["image,label", *lines]))
        splits = load(folder / "a.csv")
        processor = ViTImageProcessor(size={"height": 4, "width": 4}, do_normalize=False)
        data = ImageDataset.from_split(splits, "train", processor, DataTrainingArguments(augmentation="none"))
        values = (data.__getitems__([0, 1])["pixel_values"][:, 0, 0, 0] * 255).round().to(torch.int64)
        assert values.tolist() == reds(splits.train)
        server.shutdown()
    assert splits.facts.shared is None  # nothing is downloaded only to be compared
    assert "The image files are not compared: 4 of 4 are not on this machine" in splits.facts.notes


def test_a_dead_url_is_named_with_its_cause(folder):
    class Gone(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_error(410)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gone) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/0.png?signature={'x' * 200}"
        shown = re.escape(address[:120])
        for cause in ("410 Gone", "Cannot connect to host 127.0.0.1:"):
            (folder / "a.csv").write_text(
                f"image,label\n{address},a\n{address},b\n{address},a\n{address},b\n"
            )
            args = DataTrainingArguments(dataset_name=str(folder / "a.csv"), augmentation="none")
            splits = load_splits(args, seed=0)
            processor = ViTImageProcessor(size={"height": 4, "width": 4})
            said = rf"^train row 0 \({shown}\): the image cannot be decoded: its URL cannot be read: {cause}"
            with pytest.raises(BadImageError, match=said):
                ImageDataset.from_split(splits, "train", processor, args)
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("name", ["http://x.invalid/a.csv", "https://x.invalid/a.zip", "s3://b/images"])
@pytest.mark.parametrize("flag", ["dataset_name", "train_dir"])
def test_a_url_in_the_place_of_a_dataset(name, flag):
    with pytest.raises(BadInputError) as error:
        load_splits(DataTrainingArguments(**{flag: name}), seed=0)
    assert (
        str(error.value) == f"{name} is a URL, which is not read: download it, and give the path of the file"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv has no rows below its first line, which names the columns"),
        ("image,label\n", "a.csv has no rows below its first line, which names the columns"),
        ("image,label\nimages/0.png,a,b\n", "a.csv line 2 has 3 values, the header 2"),
        (
            "image,label\nimages/0.png,a\nimages/7.png,b\nx/8.png,b\n",
            "a.csv: 2 of 3 images are not there, the first 'images/7.png' (row 1); paths start at the file's "
            "folder",
        ),
        ("image;label\n" + "x" * 5000 + ";a\n", "a.csv: 1 of 1 images are not there, the first 'xxx"),
        (
            "path,kind\nimages/0.png,a\n",
            "no image column found: the dataset has path, kind; name it with image_column_name",
        ),
        ("image,label\nimages/0.png,0.5\n", "label column 'label' holds 0.5"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_one_short_line(folder, text, message):
    (folder / "a.csv").write_text(text)
    if "0.5" in message:
        pandas.DataFrame({"image": PATHS[:2], "label": [0.5, 1.5]}).to_parquet(folder / "a.parquet")
    with pytest.raises(BadInputError) as error:
        load(folder / ("a.parquet" if "0.5" in message else "a.csv"))
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet"])
@pytest.mark.parametrize("column", ["split", "Subset"])
def test_the_test_rows_of_a_table_are_not_trained_on(folder, name, column):
    """A column says which they are."""
    splits = ["train", "test", "train", "validation"]
    frame = pandas.DataFrame({"image": PATHS, "label": list("abba"), column: splits})
    suffix = name.removeprefix("a.")
    frame.to_csv(folder / name, index=False) if suffix == "csv" else None
    frame.to_json(folder / name, orient="records") if suffix == "json" else None
    frame.to_parquet(folder / name) if suffix == "parquet" else None
    found = load(folder / name)
    assert (reds(found.train), reds(found.test), reds(found.validation)) == ([50, 52], [51], [53])
    assert found.facts.notes == [f"The splits are those of the column {column}"]


def test_a_table_has_no_configurations(folder):
    (folder / "a.csv").write_text("\n".join(["image,label", *(line.replace("SEP", ",") for line in LINES)]))
    with pytest.raises(BadInputError, match=r"a\.csv is a file without configurations: leave dataset_"):
        load(folder / "a.csv", dataset_config_name="v2")


def test_the_splits_of_a_table_may_be_class_labels(folder):
    columns = {"image": PATHS, "label": list("abba"), "split": [0, 1, 0, 2]}
    data = datasets.Dataset.from_dict(columns)
    data = data.cast_column("split", datasets.ClassLabel(names=["train", "test", "validation"]))
    data.to_parquet(folder / "a.parquet")
    found = load(folder / "a.parquet")
    assert (reds(found.train), reds(found.test), reds(found.validation)) == ([50, 52], [51], [53])
    assert found.facts.notes == ["The splits are those of the column split"]


def test_a_column_that_contradicts_the_splits_of_a_dataset_is_said(folder, caplog):
    for split, said in (("train", ["train", "train", "test", "test"]), ("test", ["test"] * 4)):
        paths = [f"../{path}" for path in PATHS]
        frame = pandas.DataFrame({"image": paths, "label": list("abab"), "split": said})
        frame.to_csv(folder / f"{split}.csv", index=False)
    (folder / "images").rename(folder.parent / "images")
    with caplog.at_level(logging.WARNING):
        found = load(folder)
    assert found.source_sizes == {"train": 4, "test": 4}
    note = "The splits are test, train, not those of a column, which differ: split for 2 rows"
    assert note in found.facts.notes
    assert note in caplog.messages


@pytest.mark.parametrize("splits", [["train"] * 4, ["1", "2", "1", "2"], ["red", "train", "blue", "red"]])
def test_a_column_that_only_sounds_like_splits_is_none(folder, splits, caplog):
    frame = pandas.DataFrame({"image": PATHS, "label": list("abab"), "set": splits})
    frame.to_csv(folder / "a.csv", index=False)
    assert rows(load(folder / "a.csv")) == EXPECTED
    warned = "The column set is not read as splits: its values are blue, red, train" in caplog.messages
    assert warned == ("blue" in splits)


FOLDS = (
    "The column {} is not read as splits: its values are 0, 1, 2, 3, 10; for one fold as validation, give "
)


@pytest.mark.parametrize("column", ["fold", "kfold", "cv_fold", "Fold_ID"])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "metadata.csv", "train.csv"])
def test_folds_are_named_in_a_warning(folder, column, name, caplog):
    (folder / "images" / "4.png").write_bytes(red(54))
    paths = [f"{folder}/{path}" if name == "train.csv" else path for path in (*PATHS, "images/4.png")]
    image = "file_name" if name == "metadata.csv" else "image"
    frame = pandas.DataFrame({image: paths, "label": list("ababa"), column: [0, 1, 10, 2, 3]})
    if name == "train.csv":
        folder = folder / "tables"
        folder.mkdir()
        frame.drop(columns=column).to_csv(folder / "test.csv", index=False)
    frame.to_parquet(folder / name) if name == "a.parquet" else frame.to_csv(folder / name, index=False)
    found = load(folder / name if name.startswith("a.") else folder)
    assert len(found.train) + len(found.validation) == 5
    said = FOLDS.format(column) + "a column split of train and validation"
    assert caplog.messages.count(said) == 1


@pytest.mark.parametrize("column", ["folder", "unfold", "fold"])
def test_a_column_of_one_fold_is_none(folder, column, caplog):
    frame = pandas.DataFrame({"image": PATHS, "label": list("abab"), column: [1 + (column != "fold")] * 4})
    frame.to_csv(folder / "a.csv", index=False)
    assert rows(load(folder / "a.csv")) == EXPECTED
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "metadata.csv"])
def test_columns_that_also_have_a_usual_name_are_named(folder, name, caplog):
    columns = {"file_name": PATHS, "label": list("abab"), "labels": list("aabb")}
    shown = "metadata.csv: " * (name == "metadata.csv")
    notes = [
        f"{shown}The labels are those of the column label, not labels: --label_column_name takes another"
    ]
    if name != "metadata.csv":
        columns |= {"image": PATHS, "img": PATHS[::-1]}
        notes.insert(
            0, "The images are those of the column image, not img: --image_column_name takes another"
        )
    frame = pandas.DataFrame(columns)
    frame.to_parquet(folder / name) if name == "a.parquet" else frame.to_csv(folder / name, index=False)
    path = folder if name == "metadata.csv" else folder / name
    splits = load(path)
    assert rows(splits) == EXPECTED
    assert splits.facts.notes == notes
    assert caplog.messages == notes
    other = load(path, label_column_name="labels")
    assert rows(other) == [(50, "a"), (51, "a"), (52, "b"), (53, "b")]
    assert other.facts.notes == notes[:-1]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("Usage", ["Training", "Training", "Training", "PrivateTest"]),
        ("is_test", ["False", "False", "False", "True"]),
        ("is_train", [1, 1, 1, 0]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_values_of_other_words_say_the_split_of_a_row(folder, column, values, suffix):
    frame = pandas.DataFrame({"image": PATHS, "label": list("abab"), column: values})
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "a.parquet")
    found = load(folder / f"a.{suffix}")
    assert sorted(reds(found.train) + reds(found.validation)) == [50, 51, 52]
    assert reds(found.test) == [53]
    assert found.facts.notes[0].startswith(f"The splits are those of the column {column} (")


def test_a_held_out_part_of_another_word_is_not_trained_on(folder):
    frame = pandas.DataFrame(
        {"image": PATHS, "label": list("abab"), "split": ["train", "train", "train", "holdout"]}
    )
    frame.to_csv(folder / "a.csv", index=False)
    found = load(folder / "a.csv")
    assert sorted(reds(found.train) + reds(found.validation)) == [50, 51, 52]
    assert found.facts.left_out == {"row of the split holdout": 1}


def test_urls_of_files_and_bytes_in_json(folder):
    (folder / "images" / "0.png").rename(folder / "images" / "a 0.png")
    urls = [(folder / path).as_uri() for path in ["images/a 0.png", *PATHS[1:]]]
    assert "%20" in urls[0]
    pandas.DataFrame({"image": urls, "label": list("abab")}).to_csv(folder / "a.csv", index=False)
    assert rows(load(folder / "a.csv")) == EXPECTED
    cells = [{"bytes": base64.b64encode(red(50 + row)).decode(), "path": None} for row in range(4)]
    (folder / "a.json").write_text(
        json.dumps([{"image": cell, "label": label} for cell, label in zip(cells, "abab", strict=True)])
    )
    assert rows(load(folder / "a.json")) == EXPECTED


@pytest.mark.parametrize("label", ["-1.0", "-1 ", " "])
def test_minus_one_is_no_label_however_it_is_written(folder, label):
    frame = pandas.DataFrame({"image": PATHS, "label": ["0.0", "1.0", "0.0", label]})
    frame.to_csv(folder / "a.csv", index=False)
    with pytest.raises(BadInputError, match=r"1 of 4 labels are missing \(empty or -1\), the first in row 3"):
        load(folder / "a.csv")


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "NA", "null", "None"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "metadata.csv"])
def test_a_missing_number_is_no_label_however_it_is_written(folder, word, name, caplog):
    labels = ["0", "1", "0", "1", "1.0", word]
    for row in (4, 5):
        (folder / "images" / f"{row}.png").write_bytes(red(50 + row))
    records = [{"image": f"images/{row}.png", "label": label} for row, label in enumerate(labels)]
    if name == "a.jsonl":
        (folder / name).write_text("\n".join(map(json.dumps, records)))
    else:
        frame = pandas.DataFrame(records)
        frame = frame.rename(columns={"image": "file_name"}) if name == "metadata.csv" else frame
        frame.to_csv(folder / name, index=False)
    path = folder if name == "metadata.csv" else folder / name
    with pytest.raises(
        BadInputError, match=r"^train: 1 of 6 labels are missing .* in row 5: --skip_unlabelled"
    ):
        load(path)
    assert caplog.messages == [f"Labels {word!r} beside numbers mean: no label"]
    splits = load(path, skip_unlabelled=True)
    assert splits.class_names == ["0", "1"]
    assert splits.facts.left_out == {"row of train without a label": 1}


def test_a_table_that_is_not_utf_8(folder):
    (folder / "a.csv").write_bytes("image,label\nimages/0.png,Löwe\n".encode("latin-1"))
    with pytest.raises(BadInputError, match=r"^a\.csv is not text in UTF-8: save it in this encoding$"):
        load(folder / "a.csv")


def test_missing_images_can_be_skipped(folder):
    (folder / "a.csv").write_text("\n".join(["image,label", *LINES, "images/9.pngSEPb"]).replace("SEP", ","))
    args = DataTrainingArguments(
        dataset_name=str(folder / "a.csv"), skip_bad_images=True, augmentation="none"
    )
    splits = load_splits(args, seed=0)
    processor = ViTImageProcessor(size={"height": 4, "width": 4})
    kept = [ImageDataset.from_split(splits, role, processor, args) for role in ("train", "validation")]
    assert sum(map(len, kept)) == 4
    assert sum(each.num_skipped for each in kept) == 1


@pytest.mark.parametrize(
    ("names", "sources"),
    [
        (("Train.parquet", "Test.parquet"), ("train", "test")),
        (("TRAINING-0.parquet", "DEV.parquet"), ("train", "validation")),
        (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), ("train", "test")),
        (("train/0.parquet", "Val/0.parquet"), ("train", "validation")),
        (("[v1]/train.parquet", "[v1]/test.parquet"), ("train", "test")),
    ],
)
def test_a_folder_of_tables_has_the_splits_of_its_file_names(tmp_path, names, sources):
    for number, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        table(["a", "b"] * (2 - number)).to_parquet(tmp_path / "set" / name)
    splits = load(tmp_path / "set")
    assert splits.source_sizes == dict(zip(sources, (4, 2), strict=True))


def test_a_table_whose_name_has_no_split(tmp_path, caplog):
    (tmp_path / "set").mkdir()
    for name in ("train", "test", "sample_submission"):
        table(["a", "b"] * 2).to_parquet(tmp_path / "set" / f"{name}.parquet")
    with caplog.at_level(logging.WARNING):
        splits = load(tmp_path / "set")
    assert splits.source_sizes == {"train": 4, "test": 4}
    assert splits.facts.left_out == {"table whose name has no split": 1}


def test_a_dataset_as_save_to_disk_writes_it(tmp_path):
    table(["a", "b"] * 2).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").class_names == ["a", "b"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_path_with_two_labels_is_told(folder, name, caplog):
    rows_of = [*zip(PATHS, "abab", strict=True), ("images/0.png", "b"), ("images/1.png", "b")]
    if name == "a.csv":
        text = "\n".join(["image,label", *(f"{path},{label}" for path, label in rows_of)])
    else:
        text = "\n".join(json.dumps({"image": path, "label": label}) for path, label in rows_of)
    (folder / name).write_text(text)
    image = folder / "images" / "0.png"
    said = f"1 image is in more than one class, byte for byte, the first {image} (a) and {image} (b)"
    splits = load(folder / name)
    assert said in splits.facts.notes
    assert said in caplog.messages
