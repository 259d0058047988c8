"""Folders of images as people have them: the splits, classes and files that are found, and the rest."""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from encoded_images import red, reds
from PIL import Image
from transformers import ViTImageProcessor

from hf_lpwd.messages import BadInputError, say
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.decoding import HEIF, image_suffixes
from hf_lpwd.vision.data.facts import SplitFacts
from hf_lpwd.vision.data.images import BadImageError, ImageDataset
from hf_lpwd.vision.data.splits import Splits, load_splits
from hf_lpwd.vision.data.transforms import ImageTransform


@pytest.fixture(autouse=True)
def _without_heif(monkeypatch):
    """As where pillow-heif is not installed."""
    suffixes = image_suffixes() - set(HEIF)
    monkeypatch.setattr("hf_lpwd.vision.data.listing.image_suffixes", lambda: suffixes)


def make(root: Path, *names: str) -> Path:
    """Writes a red PNG, each of another shade, or an empty file where the name is none of a PNG."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(red(100 + number) if path.suffix.lower() in (".png", ".jfif") else b"text")
    return root


def load(root: Path | str, **arguments) -> Splits:
    given = {"train_dir" if "validation_dir" in arguments else "dataset_name": str(root)} | arguments
    cache = Path(root).parent / f".{Path(root).name}-cache"
    return load_splits(DataTrainingArguments(**given), seed=0, cache_dir=str(cache))


def names(splits: Splits) -> dict[str, list[str]]:
    """Returns for each split ``class/shade`` of its images, sorted, the validation cut undone."""
    found: dict[str, list[str]] = {}
    for role in splits.sources:
        data = getattr(splits, role)
        labels = [splits.class_names[label] for label in data[splits.label_column]]
        images = [f"{label}/{shade - 100}" for label, shade in zip(labels, reds(data), strict=True)]
        found.setdefault(splits.sources[role], []).extend(images)
    return {split: sorted(images) for split, images in found.items()}


TWO_EACH = ("cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png")
ALL = ["cat/0", "cat/1", "dog/2", "dog/3"]


@pytest.mark.parametrize(
    "files",
    [
        ("cat/train in a train.png", "cat/test.png", "dog/valid-1.png", "dog/dev.png"),
        ("cat/a::b.png", "cat/[0].png", "dog/*.png", "dog/?#%20.png"),
        ("cat/0.PNG", "cat/1.Png", "dog/2.png", "dog/3.jfif"),
        ("pets/cat/0.png", "pets/cat/1.png", "pets/dog/2.png", "pets/dog/3.png"),
        ("cat/images/0.png", "cat/images/1.png", "dog/images/2.png", "dog/images/3.png"),
        ("cat/0.png", "cat/more/1.png", "dog/2.png", "dog/3.png"),
    ],
)
def test_every_image_is_found_whatever_its_name(tmp_path, files):
    splits = load(make(tmp_path / "set", *files))
    assert splits.class_names == ["cat", "dog"]
    assert names(splits) == {"train": ALL}
    assert splits.facts.left_out == {}
    assert splits.facts.notes == []


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("seg_train", "seg_test"),
        ("pets-train", "pets-test"),
        ("PetsTrain", "PetsTest"),
        ("dataset_train", "dataset_test"),
        ("Training Data Set", "Test Data Set"),
        ("train_images_224x224", "test_images_224x224"),
        ("trn", "tst"),
    ],
)
def test_splits_may_have_further_words(tmp_path, train, test):
    files = [f"{train}/{name}" for name in TWO_EACH] + [f"{test}/cat/4.png", f"{test}/dog/5.png"]
    splits = load(make(tmp_path / "set", *files))
    assert splits.class_names == ["cat", "dog"]
    assert sorted(names(splits).values()) == [ALL, ["cat/4", "dog/5"]]
    assert len(splits.test) == 2


def test_a_folder_beside_splits_with_a_common_word_is_left_out(tmp_path):
    files = [f"seg_train/seg_train/{name}" for name in TWO_EACH]
    files += ["seg_test/seg_test/cat/4.png", "seg_pred/seg_pred/5.png"]
    splits = load(make(tmp_path / "set", *files))
    assert names(splits) == {"train": ALL, "test": ["cat/4"]}
    assert splits.facts.left_out == {"image in seg_pred, beside the folders of the splits": 1}
    assert splits.facts.notes[0] == "The splits are the folders seg_test (test), seg_train (train)"


def test_two_folders_of_one_split_are_said(tmp_path, caplog):
    files = [f"train1/{name}" for name in TWO_EACH] + ["train2/cat/4.png", "train2/dog/5.png"]
    splits = load(make(tmp_path / "set", *files))
    assert names(splits) == {"train1": ALL}
    assert "the 2 rows of the split train2 are not used" in caplog.text


@pytest.mark.parametrize("folder", ["run[12]", "[v1] pets", "a*", "train", "x::y", "test", "né"])
@pytest.mark.parametrize("given", ["dataset_name", "train_dir"])
def test_the_folder_may_have_any_name(tmp_path, folder, given):
    make(tmp_path / "run1", "other/0.png", "another/1.png")
    splits = load(make(tmp_path / folder, *TWO_EACH), **{"dataset_name": None, given: str(tmp_path / folder)})
    assert names(splits) == {"train": ALL}


@pytest.mark.parametrize(
    "class_name", ["__background__", "train", "test", "bullet train", "None", "NA", "007", "no", " "]
)
def test_a_class_may_have_any_name(tmp_path, class_name):
    files = (
        f"{class_name}/0.png",
        f"{class_name}/1.png",
        "dog/2.png",
        "dog/3.png",
        "zebra/4.png",
        "zebra/5.png",
    )
    splits = load(make(tmp_path / "set", *files))
    assert splits.class_names == sorted([class_name, "dog", "zebra"])
    assert [len(images) for images in names(splits).values()] == [6]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "validation", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VAL", "TEST"),
        ("train", "valid", "eval"),
        ("training", "dev", "test"),
        ("training_set", "valset", "test_images"),
        ("train2017", "val2017", "Test Data"),
    ],
)
@pytest.mark.parametrize(
    "pattern", ["{split}/{label}/{n}.png", "{label}/{split}/{n}.png", "x/y/{split}/{label}/{n}.png"]
)
def test_splits_have_their_usual_names_in_any_case(tmp_path, train, validation, test, pattern):
    rows = [
        (train, "cat"),
        (train, "dog"),
        (validation, "dog"),
        (validation, "cat"),
        (test, "cat"),
        (test, "dog"),
    ]
    files = [pattern.format(split=split, label=label, n=n) for n, (split, label) in enumerate(rows)]
    splits = load(make(tmp_path / "set", *files))
    assert splits.sources == {"train": train, "validation": validation, "test": test}
    assert names(splits) == {
        train: ["cat/0", "dog/1"],
        validation: ["cat/3", "dog/2"],
        test: ["cat/4", "dog/5"],
    }
    assert splits.facts.left_out == {}


def test_two_validation_splits(tmp_path):
    splits = load(
        make(
            tmp_path / "set",
            *(f"{split}/{label}/0.png" for split in ("train", "val", "dev") for label in "ab"),
        )
    )
    assert splits.sources == {"train": "train", "validation": "val"}
    assert splits.facts.left_out == {"row of the split dev": 2}


def test_two_training_splits_are_refused(tmp_path):
    make(tmp_path / "set", "train/a/0.png", "train/b/1.png", "Train/a/2.png", "Train/b/3.png")
    with pytest.raises(BadInputError, match=r"set has the splits Train and train: leave one of them$"):
        load(tmp_path / "set")


@pytest.mark.parametrize(
    ("split", "shown"), [("train", "train, test"), ("Test", "Test, test"), ("test", "test")]
)
def test_a_train_dir_that_holds_other_splits_is_refused(tmp_path, split, shown):
    make(tmp_path / "set", f"{split}/a/0.png", f"{split}/b/1.png", "test/a/2.png", "test/b/3.png")
    with pytest.raises(
        BadInputError, match=rf"is no folder of one split; it holds {shown}: use --dataset_name$"
    ):
        load(tmp_path / "set", dataset_name=None, train_dir=str(tmp_path / "set"))


def test_what_lies_beside_the_splits_is_counted(tmp_path, caplog):
    make(
        tmp_path / "set",
        "train/a/0.png",
        "train/b/1.png",
        "test/a/2.png",
        "test/b/3.png",
        "more/4.png",
        "5.png",
        "train/b/6.png",
    )
    with caplog.at_level(logging.WARNING):
        splits = load(tmp_path / "set")
    assert names(splits) == {"train": ["a/0", "b/1", "b/6"], "test": ["a/2", "b/3"]}
    assert splits.facts.left_out == {
        "image outside the folders of the splits": 1,
        "image in more, beside the folders of the splits": 1,
    }
    assert f"{tmp_path / 'set'}: 2 files are left out: " in caplog.text


@pytest.mark.parametrize("where", ["test", "test/unknown", "test/images"])
def test_an_unlabelled_test_split_hides_no_labels(tmp_path, where):
    splits = load(
        make(
            tmp_path / "set",
            "train/cat/0.png",
            "train/cat/1.png",
            "train/dog/2.png",
            "train/dog/3.png",
            f"{where}/4.png",
            f"{where}/5.png",
        )
    )
    assert (splits.class_names, splits.test) == (["cat", "dog"], None)
    assert names(splits) == {"train": ALL}
    assert splits.facts.left_out == {"row of test without a label": 2}


def test_the_layout_of_tiny_imagenet(tmp_path):
    splits = load(
        make(
            tmp_path / "set",
            "train/n01/images/0.png",
            "train/n01/images/1.png",
            "train/n02/images/2.png",
            "train/n02/images/3.png",
            "train/n01/n01_boxes.txt",
            "val/images/4.png",
            "val/val_annotations.txt",
            "test/images/5.png",
            "wnids.txt",
        )
    )
    assert names(splits) == {"train": ["n01/0", "n01/1", "n02/2", "n02/3"]}
    assert splits.facts.left_out == {
        "document .txt": 3,
        "row of val without a label": 1,
        "row of test without a label": 1,
    }


def test_a_class_folder_in_test_that_is_no_class_is_refused_with_the_number(tmp_path):
    make(
        tmp_path / "set",
        *(f"train/{name}/0.png" for name in ("cat", "dog")),
        "test/cat/1.png",
        "test/Dog/2.png",
        "test/Dog/3.png",
    )
    with pytest.raises(BadInputError) as error:
        load(tmp_path / "set")
    assert str(error.value) == (
        "test: 2 images are of no class that the training images have: unknown class 'Dog': did you mean "
        "'dog'? (the 2 classes are cat, dog); "
        "move them away or add training images; only the case differs: rename 'Dog' to 'dog'"
    )


def test_a_split_whose_classes_differ_in_case_alone_is_told(tmp_path):
    training = [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(2)]
    splits = load(make(tmp_path / "set", *training, "val/CAT/1.png", "val/Dog/2.png", "val/fox/3.png"))
    note = (
        "val is not used: its 3 images are in CAT, Dog, fox, which is no class of the training images; only "
        "the case differs: rename 'CAT' to 'cat', 'Dog' to 'dog'"
    )
    assert splits.facts.notes == [note]


def test_folders_in_folders_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load(
            make(tmp_path / "set", "2021/cat/0.png", "2021/dog/1.png", "2022/cat/2.png", "2022/dog/3.png")
        )
    assert splits.class_names == ["2021", "2022"]
    sentence = "The classes are the outer folders (2021, 2022), not the folders inside them (cat, dog)"
    assert splits.facts.notes == [sentence]
    assert sentence in caplog.messages


def test_an_image_beside_class_folders_is_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load(make(tmp_path / "set", *TWO_EACH, "preview.png"))
    assert names(splits) == {"train": ALL}
    assert splits.facts.left_out == {"image outside the class folders of train": 1}
    assert (
        f"{tmp_path / 'set'}: 1 file is left out: image outside the class folders of train (1)"
        in caplog.messages
    )


def test_files_that_are_no_images_are_counted_by_extension(tmp_path, caplog):
    files = (
        "cat/a.heic",
        "cat/b.HEIC",
        "dog/photo",
        "dog/x.raw",
        "dog/.hidden.png",
        "dog/._2.png",
        "notes.txt",
        "a.csv",
        ".DS_Store",
        "cat/Thumbs.db",
        "cat/desktop.ini",
        ".gitattributes",
        "dog/.ipynb_checkpoints/3.png",
        "dog/@eaDir/3.png/SYNOFILE_THUMB_M.png",
        "@eaDir/4.png",
        "lost+found/5.png",
        "__MACOSX/dog/._3.png",
    )
    with caplog.at_level(logging.WARNING):
        splits = load(make(tmp_path / "set", *TWO_EACH, *files))
    assert names(splits) == {"train": ALL}
    assert splits.facts.left_out == {
        "file .heic, which needs `pip install pillow-heif`": 2,
        "file without an extension": 1,
        "file .raw": 1,
        "hidden file": 2,
        "image in the hidden folder .ipynb_checkpoints": 1,
        "image in the hidden folder @eaDir": 2,
        "image in the hidden folder lost+found": 1,
        "document .txt": 1,
        "table": 1,
    }
    [warning] = [message for message in caplog.messages if "left out" in message]
    assert warning.startswith(f"{tmp_path / 'set'}: 10 files are left out: ")


@pytest.mark.parametrize("extra", [(), ("cat/0.txt",)])
def test_a_class_folder_without_an_image_is_named(tmp_path, extra):
    (tmp_path / "set" / "fox").mkdir(parents=True)
    splits = load(make(tmp_path / "set", *TWO_EACH, "wolf/0.heic", *extra))
    assert splits.class_names == ["cat", "dog"]
    assert splits.facts.notes == ["Class folders without an image that can be read: fox, wolf"]


def test_a_split_folder_without_images_is_told(tmp_path):
    (tmp_path / "set" / "val" / "cat").mkdir(parents=True)
    splits = load(make(tmp_path / "set", *(f"train/{name}" for name in TWO_EACH), "test/cat/x.txt"))
    assert set(splits.sources.values()) == {"train"}
    assert splits.facts.notes == ["Folders of splits without an image: test, val"]


def test_a_file_of_another_program_makes_no_saved_dataset(tmp_path):
    root = make(tmp_path / "set", *TWO_EACH)
    (root / "state.json").write_text("{}")
    assert names(load(root)) == {"train": ALL}


def test_classes_that_differ_in_case_or_spaces_alone_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load(make(tmp_path / "set", *TWO_EACH, "Cat/4.png", "c at/5.png", "cats/6.png"))
    assert splits.class_names == ["Cat", "c at", "cat", "cats", "dog"]
    sentence = "Classes whose names differ in case, spaces or Unicode form alone: Cat, c at, cat"
    assert splits.facts.notes == [sentence]
    assert sentence in caplog.messages


ODD, SHOWN = "c\nat\x1b[31m", "c\\nat\\x1b[31m"


def test_names_with_control_characters_are_shown_as_python_writes_them(tmp_path, caplog):
    root = make(
        tmp_path / "set",
        f"{ODD}/1.png",
        f"{ODD}/2.png",
        "dog/3.png",
        "dog/4\n.png",
        f"dog/{ODD}/5.png",
        f"a.{ODD}",
    )
    (root / "dog" / "same\n.png").write_bytes((root / ODD / "1.png").read_bytes())
    splits = load(root)
    assert splits.class_names == [ODD, "dog"]
    paragraph = splits.facts.describe()
    assert f"2 classes ({SHOWN}, dog)" in paragraph
    assert f"file .{SHOWN} (1)" in paragraph
    assert f"{root}/{SHOWN}/1.png ({SHOWN}) and {root}/dog/same\\n.png (dog)" in paragraph
    assert len(caplog.messages) >= 2
    assert all(map(str.isprintable, [paragraph, *caplog.messages]))
    (root / ODD / "2.png").write_bytes(b"no image")
    with pytest.raises(
        BadImageError, match=rf"^train row \d \(.*/{re.escape(SHOWN)}/2\.png\): the image cannot "
    ):
        ImageDataset(load(root).train, ImageTransform(ViTImageProcessor()))


@pytest.mark.parametrize("text", ["a\tb", "a\x1b[31mb", "a\u202eb", "a\udcffb", "a\x00b"])
def test_what_is_said_is_one_printable_line(text, capsys):
    say(text)
    assert capsys.readouterr().err == f"{text!r}\n".replace("'", "")
    say("Löwe, 獅子")
    assert capsys.readouterr().err == "Löwe, 獅子\n"


def test_a_class_whose_accents_are_written_in_two_ways_is_told(tmp_path):
    names = "caf\u00e9", "cafe\u0301"
    splits = load(make(tmp_path / "set", *(f"{name}/{n}.png" for n, name in enumerate((*names, *names)))))
    assert splits.facts.notes[0].startswith(
        "Classes whose names differ in case, spaces or Unicode form alone"
    )


def test_a_table_beside_one_folder_of_images_is_named(tmp_path):
    root = make(tmp_path / "set", "images/0.png", "images/1.png", "labels.csv")
    with pytest.raises(BadInputError) as error:
        load(root)
    assert str(error.value) == (
        f"{root}: all images are in one class folder, images; for labels in a table: --dataset_name "
        f"{root}/labels.csv"
    )


def test_a_metadata_file_may_name_the_splits(tmp_path):
    """Whichever of them are there; images without a row are left out."""
    root = make(tmp_path / "set", *(f"im/{number}.png" for number in range(7)))
    splits = ("Train", "Train", "Train", "Train", "test", "val")
    rows = [f"im/{number}.png,{'ab'[number % 2]},{split}" for number, split in enumerate(splits)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label,split", *rows]))
    splits = load(root)
    assert names(splits) == {"Train": ["a/0", "a/2", "b/1", "b/3"], "test": ["a/4"], "val": ["b/5"]}
    assert splits.facts.notes == ["The splits are those of the column split"]
    assert splits.facts.left_out == {"image without a row in its metadata file": 1}


def test_splits_of_folders_go_before_those_that_metadata_names(tmp_path, caplog):
    root = make(tmp_path / "set", *(f"{split}/{n}.png" for split in ("train", "test") for n in range(8)))
    for split in ("train", "test"):
        rows = [f"{n}.png,{'ab'[n % 2]},{'val' if split == 'train' and n > 5 else split}" for n in range(8)]
        (root / split / "metadata.csv").write_text("\n".join(["file_name,label,split", *rows]))
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert splits.source_sizes == {"train": 8, "test": 8}
    note = (
        "The splits are the folders (test, train), not those that a metadata file names, which differ for 2 "
        "of 8 images"
    )
    assert splits.facts.notes == [note]
    assert note in caplog.messages


def test_splits_of_folders_that_metadata_repeats_are_not_said_to_be_those_of_its_column(tmp_path):
    files = [f"{split}/{n}.png" for split in ("train", "test") for n in range(4)]
    root = make(tmp_path / "set", *files)
    rows = [f"{file},{'ab'[n % 2]},{file.partition('/')[0]}" for n, file in enumerate(files)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label,split", *rows]))
    assert load(root).facts.notes == []


def test_images_are_those_of_the_column_file_name(tmp_path, caplog):
    root = make(tmp_path / "set", *(f"{kind}{n}.png" for kind in ("image", "mask") for n in range(6)))
    rows = [f"mask{n}.png,image{n}.png,{'ab'[n % 2]}" for n in range(6)]
    table = root / "metadata.csv"
    table.write_text("\n".join(["mask_file_name,file_name,label", *rows]))
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert names(splits) == {"train": [f"{'ab'[n % 2]}/{n}" for n in (0, 2, 4, 1, 3, 5)]}
    note = "metadata.csv: The images are those of the column file_name, not mask_file_name"
    assert splits.facts.notes == [note]
    assert note in caplog.messages
    assert splits.facts.left_out == {"image without a row in its metadata file": 6}
    table.write_text("\n".join(["mask_file_name,image_file_name,label", *rows]))
    with pytest.raises(
        BadInputError,
        match=r"^metadata.csv names files in 2 columns, mask_file_name, image_file_name: call the one of the "
        "images file_name$",
    ):
        load(root)


def test_symbolic_links_are_followed(tmp_path):
    make(tmp_path / "elsewhere", "fox/0.png", "fox/1.png", "single.png")
    make(tmp_path / "set", "cat/2.png", "dog/3.png", "dog/4.png")
    (tmp_path / "set" / "fox").symlink_to("../elsewhere/fox")
    (tmp_path / "set" / "cat" / "5.png").symlink_to(tmp_path / "elsewhere" / "single.png")
    (tmp_path / "set" / "cat" / "6.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "set" / "cat" / "itself").symlink_to("itself")
    splits = load(tmp_path / "set")
    assert names(splits) == {"train": ["cat/0", "cat/2", "dog/1", "dog/2", "fox/0", "fox/1"]}
    assert splits.facts.left_out == {"broken symbolic link": 2}


def test_a_link_that_git_stores_as_text_is_followed(tmp_path):
    make(tmp_path / "elsewhere", "fox/3.png", "fox/4.png")
    make(tmp_path / "set", "cat/0.png", "cat/1.png", "dog/2.png")
    (tmp_path / "set" / "fox").write_text("../elsewhere/fox")
    (tmp_path / "set" / "LICENSE").write_text("see ../elsewhere/fox")
    splits = load(tmp_path / "set")
    assert splits.class_names == ["cat", "dog", "fox"]
    assert splits.facts.left_out == {"file without an extension": 1}


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_cycle_of_links_is_refused(tmp_path, target):
    make(tmp_path / "set", *TWO_EACH)
    (tmp_path / "set" / "cat" / "loop").symlink_to(target)
    with pytest.raises(
        BadInputError, match=r"cat/loop is a symbolic link to .*, which it is in: remove the link$"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("a.heic", "b.heic"),
            "{} has no image and no table that can be read; it holds 2 x file .heic, which needs "
            "`pip install pillow-heif`",
        ),
        ((), "{} has no image and no table that can be read; it holds no file"),
        (
            ("0.png", "1.png"),
            "{}: the 2 images of train have no labels: they need a folder for each class, or a "
            "metadata.csv with the columns file_name and label",
        ),
        (
            ("0.png", "1.png", "x/labels.csv"),
            "{0}: the 2 images of train have no labels: they need a folder for each "
            "class, or a metadata.csv with the columns file_name and label; for labels in a table: "
            "--dataset_name "
            "{0}/x/labels.csv",
        ),
        (
            ("train/0.png", "train/1.png", "test/2.png"),
            "{}: the 2 images of train have no labels: they need a folder for each class, or a metadata.csv "
            "with the columns file_name and label; the folders train, test are read as splits: if they are "
            "classes, rename them, or give a CSV file of the columns image and label as --dataset_name",
        ),
        (("run_settings.json",), "{} is the folder of a run of hf-lpwd, not a dataset"),
        (
            ("cat/0.png", "cat/1.png"),
            "{}: the training data has one class only ('cat'); a classifier needs at least two",
        ),
        (("test/cat/0.png", "test/dog/1.png", "val/cat/2.png"), "{} has no training split; it has test, val"),
    ],
)
def test_a_folder_without_what_is_needed(tmp_path, files, message):
    (tmp_path / "set").mkdir()
    make(tmp_path / "set", *files)
    with pytest.raises(BadInputError) as error:
        load(tmp_path / "set")
    assert str(error.value) == message.format(tmp_path / "set")


@pytest.mark.parametrize(
    ("files", "here"),
    [
        ((), "the folder beans holds no image"),
        ((".lock",), "the folder beans holds no image"),
        (("run_settings.json",), "the folder beans is that of a run"),
    ],
)
def test_an_output_folder_gives_way_to_the_dataset_of_the_hub(tmp_path, monkeypatch, files, here):
    """`beans` next to an output folder called beans is the dataset of that name, as it was before the run."""

    (tmp_path / "beans").mkdir()
    make(tmp_path / "beans", *files)
    seen = []

    def fake(path, **options):
        seen.append((path, os.path.exists(path), os.path.isabs(options["cache_dir"])))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=rf"cannot be loaded: {here}, and of the Hub: offline$"):
        load_splits(DataTrainingArguments(dataset_name="beans"), seed=0, cache_dir="cache")
    assert seen == [("beans", False, True)]
    assert os.getcwd() == str(tmp_path)


def test_a_zip_member_with_two_dots_in_its_name_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as target:
        for number, name in enumerate(("cat/0..0.png", "cat/1.png", "dog/..2.png", "dog/3.png")):
            target.writestr(name, red(100 + number))
    splits = load(tmp_path / "pets.zip")
    assert names(splits) == {"train": ["cat/0", "cat/1", "dog/3"]}
    assert splits.facts.left_out == {"hidden file": 1}


def test_the_output_folder_of_a_run_inside_the_data_is_no_class(tmp_path):
    make(tmp_path / "set", *TWO_EACH, "out/curves.png", "out/run_settings.json", "out/checkpoint-1/x.png")
    splits = load(tmp_path / "set")
    assert names(splits) == {"train": ALL}
    assert splits.facts.left_out == {"folder out, a run of hf-lpwd": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"label_column_name": "kind"},
            "no metadata file has the label column 'kind', and folders name the classes",
        ),
        (
            {"dataset_config_name": "v2"},
            "{} is a folder without configurations: leave dataset_config_name out",
        ),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(tmp_path, arguments, message):
    with pytest.raises(BadInputError) as error:
        load(make(tmp_path / "set", *TWO_EACH), **arguments)
    assert str(error.value) == message.format(tmp_path / "set")


def test_a_file_that_is_neither_image_folder_nor_table(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "a.png"))
    with pytest.raises(
        BadInputError, match=r"^a\.png is a file, not a folder of images; a table is given as"
    ):
        load_splits(DataTrainingArguments(dataset_name="a.png"), seed=0)


METADATA = {
    "metadata.csv": "file_name,label\ncat/0.png,x\ncat/1.png,y\ndog/2.png,x\ndog/3.png,y\n",
    "metadata.jsonl": "".join(
        f'{{"file_name": "{f}", "label": "{c}"}}\n' for f, c in zip(TWO_EACH, "xyxy", strict=True)
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_a_metadata_file_with_labels_goes_first(tmp_path, name):
    make(tmp_path / "set", *TWO_EACH)
    (tmp_path / "set" / name).write_text(METADATA[name])
    splits = load(tmp_path / "set")
    assert names(splits) == {"train": ["x/0", "x/2", "y/1", "y/3"]}


def test_a_metadata_file_without_labels_is_not_used(tmp_path):
    make(tmp_path / "set", *TWO_EACH)
    (tmp_path / "set" / "metadata.csv").write_text("file_name,patient\ncat/0.png,7\n")
    splits = load(tmp_path / "set")
    assert names(splits) == {"train": ALL}
    assert splits.facts.notes == [
        "metadata.csv has no label column (it has file_name, patient) and is not used"
    ]


def test_metadata_in_the_folders_of_the_splits(tmp_path):
    make(
        tmp_path / "set",
        "train/0.png",
        "train/1.png",
        "train/2.png",
        "test/3.png",
        "test/4.png",
        "train/5.png",
    )
    (tmp_path / "set" / "train" / "metadata.csv").write_text("file_name,kind\n0.png,7\n1.png,10\n5.png,7\n")
    (tmp_path / "set" / "test" / "metadata.csv").write_text("file_name,kind\n3.png,10\n4.png,7\n")
    splits = load(tmp_path / "set", label_column_name="kind")
    assert splits.class_names == ["7", "10"]
    assert names(splits) == {"train": ["10/1", "7/0", "7/5"], "test": ["10/3", "7/4"]}
    assert splits.facts.left_out == {"image without a row in its metadata file": 1}


def test_metadata_that_names_missing_files(tmp_path):
    make(tmp_path / "set", "0.png", "1.png")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,label\n0.png,a\n7.png,b\n8.png,b\n")
    with pytest.raises(
        BadInputError, match=r"^metadata\.csv names 2 files that are not there, the first 7\.png$"
    ):
        load(tmp_path / "set")


def test_train_dir_and_validation_dir_share_their_classes(tmp_path):
    make(tmp_path / "a", "cat/0.png", "dog/1.png", "fox/2.png")
    make(tmp_path / "b", "dog/3.png", "x.png")
    splits = load(tmp_path / "a", validation_dir=str(tmp_path / "b"))
    assert names(splits) == {"train": ["cat/0", "dog/1", "fox/2"], "validation": ["dog/0"]}


def archive(path: Path, folder: Path, inside: str = "") -> Path:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as target:
            for file in files:
                target.write(file, f"{inside}{file.relative_to(folder)}")
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as target:
            for file in files:
                target.add(file, f"{inside}{file.relative_to(folder)}")
    return path


@pytest.mark.parametrize(
    "name", ["pets.zip", "pets.ZIP", "pets.tar", "pets.tar.gz", "pets.tgz", "[1] pets.zip"]
)
@pytest.mark.parametrize("given", ["dataset_name", "train_dir"])
@pytest.mark.parametrize("inside", ["", "pets/"])
def test_an_archive_of_class_folders(tmp_path, name, given, inside):
    path = archive(tmp_path / name, make(tmp_path / "pets", *TWO_EACH), inside)
    splits = load(path, **{"dataset_name": None, given: str(path)})
    assert names(splits) == {"train": ALL}
    kind = "zip" if "zip" in name.lower() else "tar"
    assert splits.facts.notes == [f"Unpacked from the {kind} archive {name}"]


def test_an_archive_that_has_changed_is_read_again(tmp_path):
    path = archive(tmp_path / "pets.zip", make(tmp_path / "pets", *TWO_EACH))
    assert len(load(path).facts.class_names) == 2
    archive(path, make(tmp_path / "pets", "fox/0.png", "fox/1.png"))
    assert load(path).class_names == ["cat", "dog", "fox"]


def test_a_folder_of_archives(tmp_path):
    (tmp_path / "set").mkdir()
    archive(tmp_path / "set" / "Train.zip", make(tmp_path / "a", *TWO_EACH), "pets/")
    archive(tmp_path / "set" / "Test.tar.gz", make(tmp_path / "b", "dog/0.png", "cat/1.png"))
    assert names(load(tmp_path / "set")) == {"Train": ALL, "Test": ["cat/1", "dog/0"]}


def test_an_archive_beside_what_was_unpacked_from_it(tmp_path):
    archive(make(tmp_path / "set", *TWO_EACH) / "set.zip", tmp_path / "set")
    splits = load(tmp_path / "set")
    assert names(splits) == {"train": ALL}
    assert splits.facts.left_out == {"archive .zip, beside images": 1}


def test_archives_that_cannot_be_unpacked(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(BadInputError, match=r"^pets\.zip cannot be unpacked: .*is not a zip file$"):
        load(tmp_path / "pets.zip")
    with tarfile.open(tmp_path / "evil.tar", "w") as target:
        member = tarfile.TarInfo("../outside.png")
        member.size = len(red(1))
        target.addfile(member, io.BytesIO(red(1)))
    with pytest.raises(
        BadInputError, match=r"^evil\.tar cannot be unpacked: '\.\./outside\.png' would be extracted"
    ):
        load(tmp_path / "evil.tar")
    assert not (tmp_path / "outside.png").exists()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as target:
        for name in ("cat/0.png", "../outside.png", "/outside.png"):
            target.writestr(name, red(1))
    with pytest.raises(
        BadInputError,
        match=r"^evil\.zip: 2 members lead out of the archive, the first '\.\./outside\.png': pack it again ",
    ):
        load(tmp_path / "evil.zip")
    assert not (tmp_path / "outside.png").exists()
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with pytest.raises(BadInputError, match=r"empty\.zip has no image and no table that can be read"):
        load(tmp_path / "empty.zip")
    with pytest.raises(BadInputError, match=r"^no such file: .*/nowhere\.zip$"):
        load(tmp_path / "nowhere.zip")


def test_a_test_split_is_cut_first_and_is_the_same_for_every_seed(tmp_path):
    root = make(tmp_path / "set", *(f"{label}/{n}.png" for label in ("cat", "dog") for n in range(10)))
    args = DataTrainingArguments(dataset_name=str(root), test_split=0.2, train_val_split=0.25)
    runs = [load_splits(args, seed=seed, cache_dir=str(tmp_path / "cache")) for seed in (0, 1)]
    for splits in runs:
        assert np.bincount(splits.test["label"]).tolist() == [2, 2]
        assert np.bincount(splits.validation["label"]).tolist() == [2, 2]
        whole = np.concatenate([splits.rows[role] for role in ("train", "validation", "test")])
        assert np.sort(whole).tolist() == list(range(20))
        assert [splits.facts.splits[role].source for role in ("train", "validation", "test")] == [
            "60% of train",
            "20% of train",
            "20% of train",
        ]
    assert runs[0].rows["test"].tolist() == runs[1].rows["test"].tolist()
    assert runs[0].rows["validation"].tolist() != runs[1].rows["validation"].tolist()


def test_a_cut_that_is_not_made_is_said(tmp_path, caplog):
    root = make(tmp_path / "set", *(f"{split}/{name}" for split in ("train", "dev") for name in TWO_EACH))
    with caplog.at_level(logging.WARNING):
        load(root)
        assert caplog.messages == []
        splits = load(root, train_val_split=0.5)
    assert caplog.messages == ["train_val_split 0.5 has no effect: the dataset has the split dev"]
    assert [len(splits.rows[role]) for role in ("train", "validation")] == [4, 4]


def test_a_test_split_is_not_cut_twice():
    with pytest.raises(BadInputError, match=r"^digits has a test split \(test\): leave test_split out$"):
        load_splits(DataTrainingArguments(test_split=0.1), seed=0)


def test_images_that_are_in_two_splits_are_counted(tmp_path, caplog):
    root = make(
        tmp_path / "set", "train/a/0.png", "train/b/1.png", "train/b/2.png", "test/a/3.png", "val/b/4.png"
    )
    (root / "test" / "b").mkdir()
    for name in ("5.png", "6.png"):
        (root / "test" / "b" / name).write_bytes(red(101))
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert splits.facts.shared == {"validation": 0, "test": 2}
    assert "2 of 3 test images are also training images" in caplog.messages


def test_test_images_that_are_validation_images_and_absent_classes_are_said(tmp_path, caplog):
    root = make(
        tmp_path / "set", *(f"{place}.png" for place in ("train/a/0", "train/b/1", "train/c/2", "val/a/3"))
    )
    for label, shade in (("a", 103), ("b", 104), ("b", 105)):
        (root / "test" / label).mkdir(parents=True, exist_ok=True)
        (root / "test" / label / f"{shade}.png").write_bytes(red(shade))
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert splits.facts.unmeasured == {"validation": ["b", "c"], "test": ["c"]}
    assert splits.facts.notes == ["1 of 3 test images is also a validation image"]
    assert caplog.messages == [
        "1 of 3 test images is also a validation image",
        "2 classes have no validation image: b, c",
        "1 class has no test image: c",
    ]
    assert splits.facts.describe().endswith(
        " Not in validation: b, c. Not in test: c. 1 of 3 test images is also a validation image."
    )


def test_images_that_are_too_large_to_be_compared_are_said(tmp_path, caplog, monkeypatch):
    root = make(tmp_path / "set", *TWO_EACH)
    size = sum(path.stat().st_size for path in root.rglob("*.png"))
    monkeypatch.setattr("hf_lpwd.vision.data.image_files._MOST_BYTES", 200)
    with caplog.at_level(logging.WARNING):
        splits = load(root, train_val_split=0.5)
    said = f"The image files are not compared: they have {size / 1e9:.3g} GB, more than 2e-07"
    assert said in caplog.messages
    assert f"{said}." in splits.facts.describe()
    assert splits.facts.shared is None


def test_classes_without_training_images_are_named(tmp_path, caplog):
    root = make(
        tmp_path / "set", *(f"{name}/{n}.png" for name in ("cat", "dog", "fox", "wolf") for n in range(4))
    )
    with caplog.at_level(logging.WARNING):
        splits = load(root, max_train_samples=2, train_val_split=0.5)
    missing = splits.facts.without_training_images
    assert len(missing) == 2
    assert splits.facts.first_seen == {"validation": missing}
    assert f"2 classes have no training image: {', '.join(missing)}" in caplog.messages
    assert (splits.facts.splits["train"].images, splits.facts.splits["train"].available) == (2, 8)


def test_the_paragraph_tells_what_the_data_is(tmp_path):
    make(tmp_path / "set", *TWO_EACH, "cat/4.png", "dog/5.png", "a.txt", "preview.png")
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "set" / "dog" / "wide.png")
    splits = load(tmp_path / "set", max_eval_samples=1, train_val_split=0.3)
    assert splits.facts.describe() == (
        f"{tmp_path / 'set'}: train 5 images (71% of train), validation 1 of 2 images (29% of train); 2 "
        "classes "
        "(cat, dog). Images of 4 x 4 to 20 x 10 pixels, 8 bits, values 0 to 255 of 255. Not in validation: "
        "cat. Left out: image outside the class folders of train (1), document .txt (1)."
    )
    assert splits.facts.splits["validation"] == SplitFacts(images=1, source="29% of train", available=2)


REPEATED = "file_name,label\n0.png,a\n./0.png,a\n1.png,b\n2.png,a\n2.png,a\n3.png,b\n"


def test_a_file_that_metadata_names_twice_with_two_labels_is_refused(tmp_path):
    root = make(tmp_path / "set", *(f"{number}.png" for number in range(4)))
    (root / "metadata.csv").write_text(f"{REPEATED}0.png,b\n3.png,c\n")
    with pytest.raises(BadInputError) as error:
        load(root)
    assert str(error.value) == (
        "metadata.csv gives 2 files more than one label, the first 0.png: 'a' and 'b'; keep one row of each"
    )


def test_a_file_that_metadata_names_twice_in_two_splits_is_refused(tmp_path):
    root = make(tmp_path / "set", *(f"{number}.png" for number in range(3)))
    (root / "metadata.csv").write_text("file_name,label,split\n0.png,a,train\n1.png,b,train\n0.png,a,test\n")
    with pytest.raises(
        BadInputError, match=r"^metadata\.csv gives 1 file more than one split, .*'train' and"
    ):
        load(root)


def test_two_metadata_files_that_disagree_are_refused(tmp_path):
    root = make(tmp_path / "set", "0.png", "in/1.png")
    (root / "metadata.csv").write_text("file_name,label\n0.png,a\nin/1.png,b\n")
    (root / "in" / "metadata.csv").write_text("file_name,label\n1.png,c\n")
    with pytest.raises(
        BadInputError, match=r"^metadata\.csv gives 1 file more than one label, the first in/1\.png: "
    ):
        load(root)


def test_rows_of_metadata_that_repeat_another_are_counted(tmp_path):
    root = make(tmp_path / "set", *(f"{number}.png" for number in range(4)))
    (root / "metadata.csv").write_text(REPEATED)
    splits = load(root)
    assert names(splits) == {"train": ["a/0", "a/2", "b/1", "b/3"]}
    assert splits.facts.notes == ["metadata.csv: 2 rows repeat another and are left out"]


def test_metadata_that_overrules_class_folders_is_told(tmp_path):
    root = make(tmp_path / "set", *TWO_EACH)
    (root / "metadata.csv").write_text(
        "file_name,label\ncat/0.png,cat\ncat/1.png,dog\ndog/2.png,dog\ndog/3.png,dog\n"
    )
    splits = load(root)
    assert names(splits) == {"train": ["cat/0", "dog/1", "dog/2", "dog/3"]}
    assert splits.facts.notes == [
        "The labels of train are those of the metadata file, not the names of 2 class folders (cat, dog): "
        "they differ for 1 of 4 images"
    ]


def test_an_image_that_is_in_two_classes_is_told(tmp_path, caplog):
    root = make(tmp_path / "set", *TWO_EACH, "dog/4.png")
    for copy in ("dog/of 0.png", "dog/of 0 again.png", "cat/of 3.png", "cat/of 0.png"):
        (root / copy).write_bytes(red(103 if copy == "cat/of 3.png" else 100))
    said = (
        f"2 images are in more than one class, byte for byte, the first {root}/cat/0.png (cat) and "
        f"{root}/dog/of 0 again.png (dog)"
    )
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert said in caplog.messages
    assert said in splits.facts.notes
