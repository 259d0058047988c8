"""The main job from the command line to what it leaves behind, on scikit-learn's digits and made images."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import TINY_VIT
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_lpwd.checkpoints.folders import UNFINISHED
from hf_lpwd.cli import main
from hf_lpwd.vision.data.digits import load_digits
from hf_lpwd.vision.progress import clock

SHORT = ["--num_train_epochs", "3", "--max_train_samples", "600", "--disable_tqdm", "True"]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The folder that three epochs on some of the digits leave, and what they print."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command = [sys.executable, "-m", "hf_lpwd", "train", "--output_dir", str(folder), *SHORT]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, run.stdout.splitlines()


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_what_is_left(digits_run):
    folder, _ = digits_run
    assert {path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-")} == {
        "README.md",
        "all_results.json",
        "card.json",
        "config.json",
        "curves.png",
        "eval_results.json",
        "layer_rates.json",
        "model.safetensors",
        "preprocessor_config.json",
        "run.yaml",
        "run_facts.json",
        "run_settings.json",
        "test_results.json",
        "train_results.json",
        "trainer_state.json",
        "training_args.bin",
        "training_images.json",
    }
    with Image.open(folder / "curves.png") as curves:
        assert curves.size == (1080, 432)


def test_it_says_what_it_will_do_how_each_epoch_goes_and_how_it_went(digits_run):
    folder, lines = digits_run
    opening, *epochs, went, _, after = lines
    state = read(folder, "trainer_state.json")
    values = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry][:3]
    told, _, estimate = opening.rpartition(" Estimated time: ")
    assert told == (
        "digits: train 600 of 1,222 images (85% of train), test 359 images (test), validation 216 images "
        "(15% of train); 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9). Images of 8 x 8 pixels, 8 bits, values "
        "0 to 255 of 255. Weight decay 0.1 (mean 0.05), pwd x linear; adamw_torch_fused, learning rate 0.001 "
        "(cosine); augmentation: none. On cpu: 114 steps of 16 images, 3 epochs."
    )
    assert len(epochs) == 3
    for number, line in enumerate(epochs, start=1):
        best = max(values[:number])
        pattern = (
            rf"epoch {number}/3  loss \d\.\d+  validation {values[number - 1]:.4g}  best {best:.4g} "
            rf"\(epoch {values.index(best) + 1}\)  left \d:\d\d"
        )
        assert re.fullmatch(pattern, line), line
    best = max(values)
    best_epoch = values.index(best) + 1
    assert re.fullmatch(rf"trained in \d:\d\d, best epoch {best_epoch} of 3 \(accuracy {best:.4g}\)", went), (
        went
    )
    assert after == f"next: hf-lpwd predict {folder} IMAGES"
    facts = read(folder, "run_facts.json")
    assert facts["data"]["splits"]["train"] == {"images": 600, "source": "85% of train", "available": 1222}
    assert (facts["steps"], facts["epochs"], facts["images_per_step"]) == (114, 3, 16)
    assert 0 < facts["seconds"] < 600
    assert estimate == f"{clock(facts['seconds'])}."
    assert state["max_steps"] == 114


def test_both_accuracies_are_said_with_the_images_that_they_are_of(digits_run):
    folder, lines = digits_run
    validation, test = (
        read(folder, f"{split}_results.json")[f"{split}_accuracy"] for split in ("eval", "test")
    )
    assert lines[-2] == (
        f"validation accuracy {validation:.4f} (216 images), test accuracy {test:.4f} (359 images); "
        f"saved in {folder}"
    )
    assert read(folder, "eval_results.json")["eval_samples"] == 216
    assert read(folder, "test_results.json")["test_samples"] == 359


def test_its_settings_are_a_file_that_makes_the_run_again(digits_run, tmp_path, capsys):
    folder, _ = digits_run
    again = tmp_path / "again"
    argv = ["--config", str(folder / "run.yaml"), "--output_dir", str(again), "--disable_tqdm", "True"]
    assert main(["train", *argv, "--max_eval_samples", "100"]) == 0
    one, other = ((path / "model.safetensors").read_bytes() for path in (folder, again))
    assert one == other
    assert read(again, "test_results.json")["test_samples"] == 100
    assert "(100 of 216 images), test accuracy" in capsys.readouterr().out
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    assert settings["seed"] == 42
    assert (settings["learning_rate"], settings["max_train_samples"]) == (0.001, 600)
    assert not settings.keys() & {"token", "hub_token", "resume_from_checkpoint", "fsdp_config", "debug"}


def test_a_run_is_explained_with_its_own_decay(digits_run, capsys):
    folder, _ = digits_run
    assert main(["explain", str(folder), "--json"]) == 0
    shown, written = json.loads(capsys.readouterr().out), read(folder, "layer_rates.json")
    assert [shown[key] for key in ("layers", "parameters")] == [written["layers"], written["parameters"]]
    assert main(["explain", str(folder), "--json", "--layer_schedule", "uniform"]) == 0
    rates = [layer["rate"] for layer in json.loads(capsys.readouterr().out)["layers"]]
    assert rates == [0.1] * 6


def test_layer_rates(digits_run):
    rates = read(digits_run[0], "layer_rates.json")
    assert [row["rate"] for row in rates["layers"]] == pytest.approx(
        [0.1 * i / 5 for i in range(6)], abs=1e-15
    )
    names = set(AutoModelForImageClassification.from_pretrained(digits_run[0]).state_dict())
    assert set(rates["parameters"]) == names


def test_the_model_loads_where_hf_lpwd_does_not_exist(digits_run, tmp_path):
    """In a process in which importing hf_lpwd fails, the pipeline gives the accuracy that was reported."""
    folder, _ = digits_run
    test = load_digits()["test"]
    for i, row in enumerate(test):
        row["image"].save(tmp_path / f"{i:03}.png")
    code = f"""
import glob, json, sys
sys.modules["hf_lpwd"] = None
from transformers import pipeline
classify = pipeline("image-classification", model={str(folder)!r}, device="cpu")
answers = classify(sorted(glob.glob({str(tmp_path / "*.png")!r})), top_k=1)
print(json.dumps([answer[0]["label"] for answer in answers]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = test.features["label"].names
    right = [
        answer == names[label] for answer, label in zip(json.loads(run.stdout), test["label"], strict=True)
    ]
    assert len(right) == 359
    assert np.mean(right) == pytest.approx(read(folder, "test_results.json")["test_accuracy"], abs=1e-12)


def test_the_saved_model_is_the_best_on_validation(digits_run):
    folder, _ = digits_run
    state = read(folder, "trainer_state.json")
    accuracies = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert state["best_metric"] == max(accuracies)
    assert read(folder, "eval_results.json")["eval_accuracy"] == state["best_metric"]
    best = AutoModelForImageClassification.from_pretrained(state["best_model_checkpoint"]).state_dict()
    final = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(best[name], final[name]) for name in final)


def test_the_card(digits_run):
    from huggingface_hub import ModelCard

    folder, _ = digits_run
    card = ModelCard.load(folder / "README.md")
    assert "before training: configured and measured decay agree." in card.content
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    measured = {
        (result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results
    }
    assert measured["test", "accuracy"] == round(read(folder, "test_results.json")["test_accuracy"], 6)
    assert set(measured) == {
        (split, metric)
        for split in ("validation", "test")
        for metric in ("accuracy", "top5_accuracy", "f1_macro")
    }
    assert "| 5 | final norm, head |" in card.content
    assert "has not been replicated" in card.content or "have not been replicated" in card.content


def test_another_run_in_the_same_folder_is_refused(digits_run, capsys):
    folder, _ = digits_run
    before = (folder / "model.safetensors").read_bytes()
    assert main(["train", "--output_dir", str(folder), *SHORT, "--layer_schedule", "uniform"]) == 2
    assert capsys.readouterr().err == (
        f"hf-lpwd train: error: output_dir {folder} holds another run: its layer_schedule is 'linear', "
        "now 'uniform': name another folder\n"
    )
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A folder of 2 x 24 images in two classes, dark and light, of several sizes and kinds."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 155)):
        (root / name).mkdir()
        for i in range(24):
            pixels = generator.integers(low, low + 100, (12 + i % 5, 14, 3)).astype("uint8")
            mode = ("RGB", "L", "RGBA", "P")[i % 4]
            Image.fromarray(pixels).convert(mode).save(root / name / f"{i}.png")
    return root


QUICK = [*TINY_VIT, "--num_train_epochs", "20", "--learning_rate", "0.01", "--disable_tqdm", "True"]


def test_a_folder_of_images_without_a_test_split(image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["train", "--dataset_name", str(image_folder), "--output_dir", str(out), *QUICK]
    assert main([*argv, "--eval_strategy", "no"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"validation accuracy 1.0000 (7 images), no labelled test split; saved in {out}"
    assert re.fullmatch(r"epoch 20/20  loss [\d.]+  left 0:00", lines[-4]), lines[-4]
    assert not (out / "test_results.json").exists()
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.id2label == {0: "dark", 1: "light"}
    light = AutoImageProcessor.from_pretrained(out)(
        Image.new("RGB", (20, 20), (220, 220, 220)), return_tensors="pt"
    )
    assert model(**light).logits.argmax().item() == 1


def test_fine_tuning_a_local_model(digits_run, tmp_path, capsys):
    folder, _ = digits_run
    out = tmp_path / "out"
    argv = ["train", "--model_name_or_path", str(folder), "--output_dir", str(out), *SHORT]
    assert main([*argv, "--learning_rate", "0", "--do_train", "--do_eval"]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    assert (
        read(out, "eval_results.json")["eval_accuracy"] == read(folder, "eval_results.json")["eval_accuracy"]
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset_name", "./missing"], "./missing"),
        (["--dataset_name", "IMAGES", "--image_column_name", "photo"], "photo"),
        (["--dataset_name", "IMAGES", "--label_column_name", "kind"], "kind"),
        (["--dataset_name", "IMAGES", "--model_type", "vitt"], "did you mean 'vit'?"),
        (["--dataset_name", "IMAGES", "--model_name_or_path", "no/model"], "no model 'no/model'"),
        (
            ["--learning_rate", "2", "--weight_decay", "0.6"],
            "lr * weight_decay = 2.0 * 0.6 must be in [0, 1)",
        ),
        (["--layer_schedule", "0,0.1"], "layer_schedule lists 2 rates, but the model has 6 layer indices"),
        (["--no_decay_pattern", "nothing"], "no_decay_pattern 'nothing' matches no parameter"),
        (["--resume_from_checkpoint", "nowhere"], "resume_from_checkpoint is 'nowhere'"),
        (
            ["--dataset_name", "IMAGES", "--model_type", "vit", "--metric_for_best_model", "top5_accuracy"],
            "metric_for_best_model is 'top5_accuracy', which takes more than five classes, but ",
        ),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_folder(argv, message, image_folder, tmp_path, capsys):
    argv = [str(image_folder) if argument == "IMAGES" else argument for argument in argv]
    out = tmp_path / "out"
    assert main(["train", "--output_dir", str(out), *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hf-lpwd train: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_one_class_only_is_refused(tmp_path, capsys):
    (tmp_path / "data" / "only").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "only" / f"{i}.png")
    assert main(["train", "--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err == (
        f"hf-lpwd train: error: {tmp_path / 'data'}: the training data has one class only ('only'); a "
        "classifier needs at least two\n"
    )


def test_a_damaged_image_is_named_or_left_out(image_folder, tmp_path, capsys):
    damaged = tmp_path / "data"
    shutil.copytree(image_folder, damaged)
    (damaged / "light" / "3.png").write_bytes(b"no image")
    argv = ["train", "--dataset_name", str(damaged), *QUICK, "--max_steps", "2", "--eval_strategy", "no"]
    assert main([*argv, "--output_dir", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "cannot be decoded" in error
    assert "light/3.png" in error
    assert main([*argv, "--output_dir", str(tmp_path / "b"), "--skip_bad_images"]) == 0
    facts = json.loads((tmp_path / "b" / "run_facts.json").read_text())["data"]
    [(left_out, count)] = facts["left_out"].items()
    assert left_out in ("train image that cannot be decoded", "validation image that cannot be decoded")
    assert count == 1
    assert sum(split["available"] - split["images"] for split in facts["splits"].values()) == 1
    printed = capsys.readouterr().out
    assert f"Left out: {left_out} (1)" in printed
    assert "1 image that cannot be decoded is left out" in printed.splitlines()[-2]


@pytest.mark.parametrize(
    ("flags", "code", "start"),
    [
        ([], 2, "hf-lpwd train: error: train row "),
        (["--traceback"], 1, "hf_lpwd.vision.data.images.BadImage"),
    ],
)
def test_a_damaged_image_met_by_a_worker_ends_the_process(image_folder, tmp_path, flags, code, start):
    damaged = tmp_path / "data"
    shutil.copytree(image_folder, damaged)
    (damaged / "light" / "3.png").write_bytes(b"no image")
    streamed = (
        "import sys; from hf_lpwd.cli import main; from hf_lpwd.vision.data import images; "
        "images.fits_in_memory = lambda *_: False; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["train", "--dataset_name", str(damaged), *QUICK, "--dataloader_num_workers", "1", *flags]
    command = [sys.executable, "-c", streamed, *argv, "--output_dir", str(tmp_path / "a")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    last = run.stderr.splitlines()[-1]
    assert (run.returncode, last.startswith(start), "light/3.png" in last) == (code, True, True), run.stderr


def test_a_checkpoint_named_explicitly_that_a_killed_run_was_replacing(digits_run, tmp_path, capsys):
    """The kill came between two renames, which leave the checkpoint under UNFINISHED/replaced."""
    folder = tmp_path / "run"
    shutil.copytree(digits_run[0], folder)
    *older, newest = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (folder / UNFINISHED / "replaced").mkdir(parents=True)
    newest.rename(folder / UNFINISHED / "replaced" / newest.name)
    (folder / "test_results.json").unlink()
    argv = ["train", "--output_dir", str(folder), *SHORT, "--resume_from_checkpoint", str(newest)]
    assert main(argv) == 0
    assert (
        read(folder, "test_results.json")["test_loss"]
        == read(digits_run[0], "test_results.json")["test_loss"]
    )
    assert not re.search("^epoch ", capsys.readouterr().out, re.MULTILINE)
    (newest / "scheduler.pt").unlink()
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        f"hf-lpwd train: error: resume_from_checkpoint is {str(newest)!r}, but scheduler.pt is missing; "
        f"the newest complete one is {older[-1]}\n"
    )


def test_a_run_of_constant_learning_rate_can_be_extended(tmp_path, capsys):
    """Two epochs and then two more give the weights of four."""
    argv = ["train", "--max_train_samples", "64", "--max_eval_samples", "32", "--disable_tqdm", "True"]
    argv += ["--lr_scheduler_type", "constant", "--warmup_steps", "0", "--per_device_train_batch_size", "32"]
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert main([*argv, "--output_dir", str(short), "--num_train_epochs", "2"]) == 0
    assert main([*argv, "--output_dir", str(short), "--num_train_epochs", "4"]) == 2
    assert "only a constant learning rate can go on for longer, with --resume" in capsys.readouterr().err
    resume = ["--resume_from_checkpoint", "True"]
    assert main([*argv, "--output_dir", str(short), "--num_train_epochs", "4", *resume]) == 0
    assert main([*argv, "--output_dir", str(whole), "--num_train_epochs", "4"]) == 0
    last = [(folder / "checkpoint-8" / "model.safetensors").read_bytes() for folder in (short, whole)]
    assert last[0] == last[1]
    assert main([*argv, "--output_dir", str(short), "--num_train_epochs", "3", *resume]) == 2
    argv[argv.index("constant")] = "cosine"
    cosine = [*argv, "--output_dir", str(tmp_path / "cosine")]
    assert main([*cosine, "--num_train_epochs", "1"]) == 0
    capsys.readouterr()
    assert main([*cosine, "--num_train_epochs", "2", *resume]) == 2
    assert "its num_train_epochs is 1.0, now 2.0: only a constant learning rate" in capsys.readouterr().err
