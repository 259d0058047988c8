"""What the benchmarks in scripts/ say of what they compare."""

import json
import sys
from dataclasses import replace

import benchmark_throughput
import benchmark_trainer
import numpy as np
import pytest
import torch
from datasets import disable_progress_bars, enable_progress_bars
from input_loaders import SETTINGS, example_dataset, make_loader, our_dataset, photographs, write_images

# `datasets` reads parquet through fsspec, which leaves its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def no_progress_bars():
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.mark.parametrize("name", SETTINGS)
def test_images_are_cut_from_photographs_and_differ(name):
    images = photographs(SETTINGS[name], 4)
    assert {image.shape for image in images} == {(*SETTINGS[name].shape, 3)}
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    assert len({image.tobytes() for image in images}) == 4


@pytest.mark.parametrize("kind", ["ours", "example", "timm"])
def test_crops_are_read_off_the_images(kind):
    found = benchmark_throughput.crops(kind, replace(SETTINGS["32 px"], batch_size=8), 64)
    assert found.shape == (64, 5)
    # A crop of the padded image begins 4 pixels before its edge at most.
    assert np.abs(found[:, :2] * 31 - np.rint(found[:, :2] * 31)).max() < 0.05
    assert found[:, :2].min() * 31 == pytest.approx(-4, abs=0.05)
    assert found[:, :2].max() * 31 == pytest.approx(4, abs=0.05)
    assert set(found[:, 4]) == {0.0, 1.0}


def test_the_same_augmentation_passes_and_another_is_found(monkeypatch):
    setting = replace(SETTINGS["32 px"], augmentation="random_resized_crop", batch_size=8)
    same = benchmark_throughput.check(setting, 200)
    assert same.keys() >= {"top", "left", "height", "width", "aspect ratio", "mirrored"}
    assert min(same.values()) > 0.001
    crops = benchmark_throughput.crops
    monkeypatch.setattr(
        benchmark_throughput, "crops", lambda kind, *more: crops(kind, *more) * (0.8 if kind == "ours" else 1)
    )
    assert benchmark_throughput.check(setting, 200)["height"] < 0.001


def test_without_augmentation_the_images_are_the_same(tmp_path, monkeypatch):
    setting = replace(SETTINGS["32 px"], augmentation="none", batch_size=8)
    monkeypatch.setattr("input_loaders.random_part", lambda setting: [])
    (tmp_path / "data").mkdir()
    write_images(tmp_path / "data", photographs(setting, 8), setting.file_format)
    ours, example = (make(setting, tmp_path / "data") for make in (our_dataset, example_dataset))
    batch = ours.__getitems__(range(8))
    torch.testing.assert_close(batch["pixel_values"], torch.stack(example[:8]["pixel_values"]))
    assert batch["labels"].tolist() == example[:8]["label"]
    images = next(iter(make_loader("example", setting, tmp_path / "data", 0)))["pixel_values"]
    assert images.shape == (8, 3, 32, 32)


def run_main(module, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["benchmark", *argv])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def test_throughput_is_a_ratio_to_the_example(monkeypatch, capsys):
    speeds = {
        "example, 0 workers": np.array([10.0, 20.0, 10.0]),
        "example, 2 workers": np.array([5.0, 40.0, 5.0]),
        "ours, 0 workers": np.array([30.0, 80.0, 20.0]),
    }
    rows = benchmark_throughput.report(speeds)
    assert [rows[name]["ratio"] for name in speeds] == [1.0, 0.5, 2.0]
    assert "| ours, 0 workers | 30 | 2.00 | 2.00 to 2.50 |" in capsys.readouterr().out


def test_step_times_leave_out_the_first_and_the_last(monkeypatch):
    times = benchmark_trainer.StepTimes()
    times.begun = [0.0, 10.0, 11.0, 13.0, 30.0]
    assert times.take().tolist() == [1.0, 2.0]
    assert times.begun == []


def test_trainers_are_timed_in_turn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_trainer, "STEPS", 3)
    output = tmp_path / "figures.json"
    argv = [
        "--rounds",
        "2",
        "--batch_size",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--output",
        str(output),
    ]
    run_main(benchmark_trainer, monkeypatch, *argv)
    trainers = json.loads(output.read_text())["trainers"]
    assert list(trainers) == ["Trainer", "Trainer again", "l2", "wd", "rwd", "pwd"]
    assert {len(row["seconds"]) for row in trainers.values()} == {2}
    assert trainers["Trainer"]["ratio"] == 1.0
    assert "| pwd | " in capsys.readouterr().out
