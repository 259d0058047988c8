import csv
import io
import json
import shutil

import datasets
import numpy as np
import pytest
from encoded_images import noise
from PIL import Image
from small_runs import train
from transformers import pipeline

from hf_lpwd.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run on the digits, which tests may not change."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train(folder) == 0
    return folder


@pytest.fixture
def images(tmp_path):
    """Five images of several sizes, modes and formats, in folders."""
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    Image.fromarray(noise(9, 12, seed=1)).save(folder / "grey.png")
    Image.fromarray(noise(8, 8, 3, seed=2)).save(folder / "small.PNG")
    Image.fromarray(noise(40, 30, 3, seed=3)).save(folder / "train" / "large.jpg")
    Image.fromarray(noise(20, 20, 4, seed=4)).save(folder / "train" / "alpha.webp")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(10, 30, 3, seed=5)).save(folder / "train" / "turned.jpg", exif=turned)
    return folder


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_curves_of_a_run_are_not_classified(run, capsys):
    assert main(["predict", str(run), str(run)]) == 2
    assert capsys.readouterr().err == (
        f"hf-lpwd predict: error: {run} is the folder of a run of hf-lpwd, not of images\n"
    )


def test_classes_and_scores_are_those_of_the_pipeline(run, images, capsys):
    assert main(["predict", str(run), str(images), "--top_k", "3", "--batch_size", "2"]) == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    paths = sorted(str(path) for path in images.rglob("*.*"))
    assert [row["image"] for row in rows[::3]] == paths
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 5
    classify = pipeline("image-classification", model=str(run))
    expected = [answer for path in paths for answer in classify(path, top_k=3)]
    assert [row["class"] for row in rows] == [answer["label"] for answer in expected]
    scores = [answer["score"] for answer in expected]
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores, rtol=1e-5)
    assert captured.err == "hf-lpwd predict: 5 of 5 images classified\n"


def test_an_archive_is_read_as_the_folder_that_it_holds(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", images)
    assert main(["predict", str(run), str(images), archive]) == 0
    rows = rows_of(capsys.readouterr().out)
    answers = [[(row["class"], row["score"]) for row in half] for half in (rows[:5], rows[5:])]
    assert answers[0] == answers[1]
    [folder] = (tmp_path / "cache" / "unpacked").iterdir()
    assert [row["image"].removeprefix(str(folder)) for row in rows[5:]] == [
        row["image"].removeprefix(str(images)) for row in rows[:5]
    ]


def test_one_image_and_more_classes_than_there_are(run, images, capsys):
    assert main(["predict", str(run / "checkpoint-4"), str(images / "grey.png"), "--top_k", "99"]) == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    assert captured.err == "hf-lpwd predict: 1 of 1 image classified\n"
    assert {row["class"] for row in rows} == set("0123456789")
    assert sum(float(row["score"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_read_is_named_and_counted(run, images, tmp_path, capsys):
    (images / "a.png").write_bytes(b"no image")
    (images / "small.PNG").write_bytes((images / "small.PNG").read_bytes()[:60])
    (images / "notes.txt").write_text("mine")
    (images / "README").write_text("mine")
    out = tmp_path / "new folder" / "predictions.csv"
    assert main(["predict", str(run), str(images), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert (
        lines[0] == f"hf-lpwd predict: {images}: left out: file without an extension (1), document .txt (1)"
    )
    assert lines[1] == f"hf-lpwd predict: {images / 'a.png'} cannot be read: not an image in a known format"
    assert lines[2].startswith(f"hf-lpwd predict: {images / 'small.PNG'} cannot be read: ")
    assert lines[3:] == [f"hf-lpwd predict: 4 of 6 images classified, in {out}"]
    assert [row["image"] for row in rows_of(out.read_text())] == [
        str(images / name) for name in ("grey.png", "train/alpha.webp", "train/large.jpg", "train/turned.jpg")
    ]


def test_images_with_several_frames_are_counted(run, tmp_path, capsys):
    first, second = (Image.fromarray(noise(8, 8, seed=seed)) for seed in (1, 2))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "b.gif")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "hf-lpwd predict: 1 of 2 images looked at has several frames, of which the first is used",
        "hf-lpwd predict: 2 of 2 images classified",
    ]
    assert len({row["score"] for row in rows_of(captured.out)}) == 1


def test_deep_images_are_scaled_as_in_training(run, tmp_path, capsys):
    """Alone, an image of values up to 900 would be taken for one of 10 bits."""
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    facts = json.loads((folder / "run_facts.json").read_text())
    facts["data"]["images"]["scale"] = {"integers": 4095, "floats": 1}
    (folder / "run_facts.json").write_text(json.dumps(facts))
    values = np.random.default_rng(0).integers(0, 901, (8, 8))
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.rint(values * (255 / 4095)).astype(np.uint8)).save(tmp_path / "flat.png")
    files = [str(tmp_path / name) for name in ("deep.png", "flat.png")]
    assert main(["predict", str(folder), *files, "--top_k", "10"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [(row["class"], row["score"]) for row in rows[:10]] == [
        (r["class"], r["score"]) for r in rows[10:]
    ]
    assert main(["predict", str(run), *files, "--top_k", "10"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["score"] for row in rows[:10]] != [row["score"] for row in rows[10:]]


def test_deep_images_have_one_scale_where_training_had_none(run, tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 901, (8, 8))
    for name, highest in (("dark", 900), ("light", 60000)):
        values[0, 0] = highest
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.rint(values * (255 / 65535)).astype(np.uint8)).save(tmp_path / f"{name}-flat.png")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    captured = capsys.readouterr()
    rows = {row["image"].rpartition("/")[2]: (row["class"], row["score"]) for row in rows_of(captured.out)}
    assert rows["dark.png"] == rows["dark-flat.png"]
    assert rows["light.png"] == rows["light-flat.png"]
    assert captured.err.splitlines()[0] == (
        "hf-lpwd predict: there are images of more than 8 bits (integers to 65535 and floats to 1 become 0 "
        "to 255)"
    )


def test_links_are_followed_and_a_cycle_is_refused(run, images, tmp_path, capsys):
    (tmp_path / "outside").mkdir()
    Image.fromarray(noise(8, 8, seed=6)).save(tmp_path / "outside" / "linked.png")
    (images / "other").symlink_to(tmp_path / "outside")
    assert main(["predict", str(run), str(images)]) == 0
    names = [row["image"] for row in rows_of(capsys.readouterr().out)]
    assert len(names) == len(set(names)) == 6
    assert str(images / "other" / "linked.png") in names
    (images / "train" / "loop").symlink_to(images)
    assert main(["predict", str(run), str(images)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(images / "train" / "loop") in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["RUN", "nowhere.png"], "no such file or folder: nowhere.png"),
        (["RUN", "EMPTY"], "EMPTY holds no image; left out: document .txt (1)"),
        (["RUN", "IMAGES", "--top_k", "0"], "top_k must be at least 1, not 0"),
        (["EMPTY", "IMAGES"], "EMPTY holds no trained model: name the output_dir of a run of hf-lpwd train"),
        (["no/such/model", "IMAGES"], "the model no/such/model cannot be loaded: "),
        (
            ["RUN", "IMAGES", "--out", "EMPTY/notes.txt/a.csv"],
            "EMPTY/notes.txt: File exists (FileExistsError)",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, images, tmp_path, capsys, argv, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    for name, path in (("RUN", run), ("IMAGES", images), ("EMPTY", tmp_path / "empty")):
        argv = [argument.replace(name, str(path)) for argument in argv]
        message = message.replace(name, str(path))
    assert main(["predict", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"hf-lpwd predict: error: {message}")


def test_a_model_without_a_trained_head_is_refused(run, images, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    assert main(["predict", str(folder), str(images)]) == 2
    assert "is a model for multi_label_classification" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert main(["predict", str(folder), str(images)]) == 2
    assert "has no trained weights for vit.layers.4." in capsys.readouterr().err
