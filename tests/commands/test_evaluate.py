import csv
import json
import shutil

import datasets
import numpy as np
import pytest
from encoded_images import encode
from PIL import Image
from sklearn.datasets import load_digits
from small_runs import train
from transformers import pipeline

from hf_lpwd.checkpoints.run_record import write_record
from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.digits import load_digits as digits_splits
from hf_lpwd.vision.data.labelled import load_labelled, with_training_images, write_training_images
from hf_lpwd.vision.data.splits import load_splits

DIGITS = load_digits()
DIGITS_PNG = [encode(Image.fromarray(image.astype(np.uint8))) for image in DIGITS.images[:60]]


def write_folder(folder, rows, name=str):
    """Writes the digits of these rows as class folders; returns their labels by path, in sorted order."""
    labels = {}
    for row in rows:
        path = folder / name(DIGITS.target[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(DIGITS.images[row] * (255 / 16)).astype(np.uint8)).save(path)
        labels[path] = str(DIGITS.target[row])
    return dict(sorted(labels.items()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on the digits, whose test split is whole; tests may not change it."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train(folder, "--max_eval_samples", "2000", "--max_train_samples", "400") == 0
    return folder


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_figures_are_those_that_training_measured_on_the_test_split(run, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for split, part in digits_splits().items():
        part.to_parquet(data / f"{split}-00000-of-00001.parquet")
    out = tmp_path / "out"
    assert main(["evaluate", str(run), str(data), "--out", str(out)]) == 0
    results = results_in(out)
    trained = json.loads((run / "test_results.json").read_text())
    assert results["metrics"] == {
        name: pytest.approx(trained[f"test_{name}"], abs=1e-12)
        for name in ("accuracy", "f1_macro", "top5_accuracy")
    }
    assert (results["split"], results["images"], results["unlabelled"], results["unreadable"]) == (
        "test",
        359,
        0,
        [],
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"359 images: accuracy {trained['test_accuracy']:.4f}, ")
    assert lines[0].split()[:5] == ["class", "images", "recall", "precision", "f1"]
    table = list(csv.DictReader((out / "classes.csv").read_text().splitlines()))
    assert [row["class"] for row in table] == list("0123456789")
    assert sum(int(row["images"]) for row in table) == 359
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "classes.csv", "confusion.csv", "confusion.svg")
    }


def test_classes_are_matched_by_name_and_every_image_is_measured(run, tmp_path, capsys):
    """In alphabetical order these two classes would be 0 and 1."""
    folder = tmp_path / "some digits"
    rows = [row for row in range(300) if DIGITS.target[row] in (3, 7)]
    labels = write_folder(folder, rows)
    assert main(["evaluate", str(run), str(folder), "--batch_size", "7"]) == 0
    classify = pipeline("image-classification", model=str(run))
    expected = np.zeros((10, 10), dtype=int)
    for path, label in labels.items():
        expected[int(label), int(classify(str(path))[0]["label"])] += 1
    out = run / "evaluation-some-digits"
    with (out / "confusion.csv").open() as file:
        header, *matrix = csv.reader(file)
    assert header == ["class", *"0123456789"]
    assert [[int(count) for count in row[1:]] for row in matrix] == expected.tolist()
    results = results_in(out)
    assert results["images"] == len(rows)
    assert results["metrics"]["accuracy"] == expected.trace() / len(rows)
    assert results["classes_without_images"] == list("01245689")
    told = capsys.readouterr().err
    assert "8 of the model's 10 classes have no image here" in told
    assert f"{folder}: {len(rows)} images (the only split); 10 classes (0, 1, 2, " in told


def test_what_cannot_be_read_is_named_counted_and_left_out(run, tmp_path, capsys):
    labels = write_folder(tmp_path / "data", range(20))
    bad = next(iter(labels))
    bad.write_bytes(b"no image")
    assert main(["evaluate", str(run), str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 1
    assert results_in(tmp_path / "out")["images"] == 19
    assert results_in(tmp_path / "out")["unreadable"] == [f"train row 0 ({bad})"]
    lines = capsys.readouterr().err.splitlines()
    assert f"hf-lpwd evaluate: train row 0 ({bad}) cannot be read: not an image in a known format" in lines
    assert "hf-lpwd evaluate: 1 of 20 images could not be read and are left out" in lines


def parquet(path, labels):
    """Writes images with these labels, a dataset of one file."""
    images = []
    for row in range(len(labels)):
        target = path.parent / "images" / f"{row}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(DIGITS.images[row].astype(np.uint8)).save(target)
        images.append({"bytes": target.read_bytes(), "path": None})
    datasets.Dataset.from_dict({"image": images, "label": labels}).to_parquet(path)
    return str(path)


def test_images_without_a_label_are_refused_or_left_out_by_request(run, tmp_path, capsys):
    data = parquet(tmp_path / "some.parquet", [0, -1, 2, None, 4])
    assert main(["evaluate", str(run), data]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hf-lpwd evaluate: error: {data}: 2 of 5 images have no label: --skip_unlabelled leaves them out"
    )
    assert main(["evaluate", str(run), data, "--skip_unlabelled", "--out", str(tmp_path / "out")]) == 0
    results = results_in(tmp_path / "out")
    assert (results["images"], results["unlabelled"]) == (3, 2)
    assert "Left out: images without a label (2)." in capsys.readouterr().err
    nothing = parquet(tmp_path / "none.parquet", [-1, -1])
    assert main(["evaluate", str(run), nothing, "--skip_unlabelled"]) == 2
    assert "has no labels, so that nothing can be measured" in capsys.readouterr().err


def test_a_class_that_the_model_lacks_is_refused(run, tmp_path, capsys):
    write_folder(tmp_path / "data", range(20), name=lambda digit: "zero" if digit == 0 else str(digit))
    assert main(["evaluate", str(run), str(tmp_path / "data")]) == 2
    assert "'zero' (2 images)" in capsys.readouterr().err
    data = parquet(tmp_path / "some.parquet", ["1", "zero", "zero"])
    assert main(["evaluate", str(run), data]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hf-lpwd evaluate: error: {data}: 1 class is none of the model's: 'zero' (2 images); "
        "the model has '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'"
    )


@pytest.mark.parametrize("names", [("Blue", "green"), ("Blue",)])
def test_a_folder_without_any_class_of_the_model_is_refused_with_its_classes(tmp_path, names):
    for name in names:
        write_folder(tmp_path, range(2), name=lambda digit, name=name: name)
    with pytest.raises(BadInputError) as error:
        load_labelled(DataTrainingArguments(dataset_name=str(tmp_path)), ["blue", "red"])
    listed = ", ".join(f"{name!r} (2 images)" for name in names)
    classes = "1 class is" if len(names) == 1 else "2 classes are"
    assert str(error.value) == (
        f"{tmp_path}: {classes} none of the model's: {listed}; the model has 'blue', 'red'; only the case "
        "differs: rename 'Blue' to 'blue'"
    )


def measure(run, out, *flags):
    """`hf-lpwd train` that does not train."""
    flags = [*flags, "--model_name_or_path", str(run), "--output_dir", str(out), "--report_to", "none"]
    return main(["train", *flags, "--per_device_eval_batch_size", "50", "--disable_tqdm", "True"])


def test_do_predict_alone_measures_the_whole_test_split(run, tmp_path, capsys):
    assert measure(run, tmp_path / "out", "--do_predict") == 0
    measured, trained = (
        json.loads((folder / "test_results.json").read_text()) for folder in (tmp_path / "out", run)
    )
    for metric in ("test_accuracy", "test_f1_macro", "test_top5_accuracy"):
        assert measured[metric] == pytest.approx(trained[metric], abs=1e-12)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"digits (test): accuracy {trained['test_accuracy']:.4f} (359 images); in {tmp_path / 'out'}"
    )
    assert measure(run, tmp_path / "out", "--do_predict") == 0
    assert measure(run, run, "--do_predict") == 2
    assert json.loads((run / "test_results.json").read_text()) == trained


def test_do_eval_alone_measures_all_of_a_folder_with_the_classes_of_the_model(run, tmp_path, capsys):
    folder = tmp_path / "data"
    rows = [row for row in range(300) if DIGITS.target[row] in (3, 7)]
    write_folder(folder, rows)
    assert measure(run, tmp_path / "out", "--do_eval", "--dataset_name", str(folder)) == 0
    assert f"({len(rows)} images)" in capsys.readouterr().out.splitlines()[-1]
    assert main(["evaluate", str(run), str(folder), "--out", str(tmp_path / "again")]) == 0
    measured = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    again = results_in(tmp_path / "again")["metrics"]
    assert {name: measured[f"eval_{name}"] for name in again} == {
        name: pytest.approx(value, abs=1e-12) for name, value in again.items()
    }


def test_deep_images_have_the_scale_of_their_dataset(run, tmp_path, capsys):
    """Two thirds of the images hold values up to 960 of 65,535."""
    for folder, bits in (("deep", np.uint16), ("flat", np.uint8)):
        for row in range(90):
            values = DIGITS.images[row] * (4095 if row % 3 == 0 else 60)
            white = 1 if folder == "deep" else 65535 / 255
            path = tmp_path / folder / str(DIGITS.target[row]) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(values / white).astype(bits)).save(path)
    for folder in ("deep", "flat"):
        data = str(tmp_path / folder)
        assert main(["evaluate", str(run), data, "--out", str(tmp_path / f"of {folder}")]) == 0
    assert "integers to 65535 and floats to 1 become 0 to 255" in capsys.readouterr().err
    deep, flat = (tmp_path / f"of {folder}" for folder in ("deep", "flat"))
    assert (deep / "confusion.csv").read_text() == (flat / "confusion.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--do_eval"],
            "digits has no validation split, it has train, test: hf-lpwd evaluate takes one",
        ),
        (
            ["--do_predict", "--push_to_hub"],
            "push_to_hub uploads what was trained, but --do_train is not given",
        ),
        (["--do_predict", "--config_name", "RUN"], "config_name has no effect without --do_train"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, tmp_path, capsys, flags, message):
    assert measure(run, tmp_path / "out", *(flag.replace("RUN", str(run)) for flag in flags)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_images_of_the_training_are_not_measured_unsaid(tmp_path, capsys):
    data = tmp_path / "data"
    write_folder(data / "train", range(100))
    write_folder(data / "test", range(100, 130))
    run = tmp_path / "run"
    flags = ["--dataset_name", str(data), "--model_type", "vit", "--config_overrides", OVERRIDES]
    assert train(run, *flags) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(data)]) == 0
    assert results_in(run / "evaluation-data-test")["images"] == 30
    assert main(["evaluate", str(run), str(data / "test")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(data / "train")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hf-lpwd evaluate: error: {data / 'train'} holds the images that {run} was trained on: name another "
        "dataset, or --split train if you want that"
    )
    assert measure(run, tmp_path / "out", "--do_eval", "--dataset_name", str(data / "train")) == 2
    assert f"{data / 'train'} holds the images that {run} was trained on" in capsys.readouterr().err
    assert main(["evaluate", str(run), str(data), "--split", "train"]) == 0
    assert "the figures say nothing about new images" in capsys.readouterr().err
    assert results_in(run / "evaluation-data-train")["training_images"] is True
    assert main(["evaluate", str(run), str(data), "--split", "tst"]) == 2
    assert "unknown split 'tst': did you mean 'test'? (it has train, test)" in capsys.readouterr().err


def trained_on(folder, data, **flags):
    """The folder of a run that was trained on this data, without its model."""
    args = DataTrainingArguments(**(flags or {"dataset_name": data}))
    folder.mkdir()
    write_record(folder, {"dataset_name": args.dataset_name, "train_dir": args.train_dir})
    write_training_images(folder, load_splits(args, seed=0))
    return folder


def compared(run, data):
    """How many of the images that `hf-lpwd evaluate` takes are training images, and whether it refuses."""
    args = DataTrainingArguments(dataset_name=str(data))
    found, refused = with_training_images(load_labelled(args, "0123456789"), str(run), None)
    return (found.facts.shared or {}).get(found.split), refused


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes 40 images, of which 34 are trained on, as data/train in what is the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_folder(tmp_path / "data" / "train", range(40))


def test_training_images_are_known_by_their_content(data, tmp_path, monkeypatch):
    run = trained_on(tmp_path / "run", None, train_dir="data/train")
    assert compared(run, "data") == (34, True)  # holds the one split, train
    assert compared(run, "data/train") == (34, True)
    assert compared(run / "checkpoint-1", "data/train") == (34, True)
    shutil.copytree("data", "copy")
    assert compared(run, "copy") == (34, True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert compared("../run", "../data") == (34, True)
    write_folder(tmp_path / "new", range(100, 200))
    assert compared("../run", "../new") == (0, False)
    few = sorted(data)[:10]
    for path in few:
        shutil.copy(path, tmp_path / "new" / path.parent.name)
    count, refused = compared("../run", "../new")
    assert 4 <= count <= 10
    assert not refused


def test_training_images_are_known_in_tables_and_archives(data, tmp_path):
    cells = [{"bytes": path.read_bytes(), "path": None} for path in data]
    table = datasets.Dataset.from_dict({"image": cells, "label": list(data.values())})
    for part in range(2):
        table.shard(2, part).to_parquet(f"data/part-{part}.parquet")
    run = trained_on(tmp_path / "run", "data/part-*.parquet")
    assert [compared(run, name) for name in ("data/part-0.parquet", "data/train")] == [(17, True), (34, True)]
    shutil.make_archive("packed", "zip", "data/train")
    assert compared(trained_on(tmp_path / "packed_run", "packed.zip"), "data/train") == (34, True)
    lines = [f"{path},{label}" for path, label in data.items()]
    (tmp_path / "data" / "train.csv").write_text("\n".join(["image,label", *lines]))
    assert compared(trained_on(tmp_path / "csv_run", "data/train.csv"), "data/train") == (34, True)


def test_a_held_out_file_of_the_dataset_is_no_training_data(data, tmp_path):
    (tmp_path / "set").mkdir()
    for split, rows in (("train", range(40)), ("test", range(40, 60))):
        images = [{"bytes": DIGITS_PNG[row], "path": None} for row in rows]
        table = {"image": images, "label": [str(DIGITS.target[row]) for row in rows]}
        datasets.Dataset.from_dict(table).to_parquet(f"set/{split}-0.parquet")
    run = trained_on(tmp_path / "run", "set")
    assert compared(run, "set/test-0.parquet") == (0, False)
    assert compared(run, "set/train-0.parquet") == (34, True)


@pytest.mark.parametrize(
    ("trained", "evaluated", "refused"),
    [
        ("data/train", "data", True),
        ("data/t*n", "data/train", True),
        ("data", "data/train", True),
        ("data", "data/test", False),
        ("data", "other", False),
    ],
)
def test_without_a_record_of_the_images_their_paths_are_compared(
    data, tmp_path, trained, evaluated, refused, monkeypatch
):
    for name, rows in (("data/test", range(40, 60)), ("other", range(60, 80))):
        if evaluated == name:
            write_folder(tmp_path / name, rows)
    run = tmp_path / "run"
    write_record(run, {"dataset_name": trained})
    assert compared(run, evaluated) == (None, refused)
    path = str(tmp_path / trained)
    (run / "training_images.json").write_text(json.dumps({"data": path, "images": None}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert compared(run, f"../{evaluated}") == (None, refused)


OVERRIDES = (
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,image_size=8,patch_size=4"
)
