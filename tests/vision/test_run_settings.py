"""What identifies a run of the main job."""

import pytest
from encoded_images import CLASSES, load_from_parquet, table

from hf_lpwd.checkpoints.run_folder import check_output_dir
from hf_lpwd.checkpoints.run_record import IMAGES, write_record
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.run_settings import data_settings, run_settings

SPLITS = ("train", "validation", "test")


def test_settings_hold_what_the_run_computes_and_no_secret():
    argv = ["--token", "hf_secret", "--hub_token", "hf_secret", "--layer_schedule", "cosine"]
    settings = run_settings(*parse_args(argv))
    assert settings["layer_schedule"] == "cosine"
    assert settings["model_type"] == "vit"
    assert {"output_dir", "logging_steps", "token", "hub_token"}.isdisjoint(settings)
    assert "hf_secret" not in str(settings)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dataloader_drop_last", True),
        ("ignore_data_skip", True),
        ("neftune_noise_alpha", 5.0),
        ("train_sampling_strategy", "sequential"),
    ],
)
def test_what_a_step_sees_is_part_of_the_run(flag, value):
    settings, plain = run_settings(*parse_args([f"--{flag}", str(value)])), run_settings(*parse_args([]))
    assert settings == {**plain, flag: value}


def test_the_data_is_part_of_the_run(tmp_path):
    splits = load_from_parquet(tmp_path, {"train": table([0, 1] * 4, feature=CLASSES)})
    settings = data_settings(splits)
    assert settings.pop("images_and_labels").keys() == {"train", "validation"}
    assert settings == {"class_names": ["cat", "dog"], "rows": {"train": 8}}


def test_a_run_does_not_go_on_with_other_labels_of_as_many_images(tmp_path):
    found = []
    for name, labels in (("a", [0, 1] * 4), ("b", [0, 1] * 4), ("c", [1, 0] * 4)):
        (tmp_path / name).mkdir()
        parts = {split: table(labels if split == "train" else [0, 1], feature=CLASSES) for split in SPLITS}
        found.append(data_settings(load_from_parquet(tmp_path / name, parts)))
    first, same, other = found
    write_record(tmp_path, first)
    (tmp_path / "model.safetensors").touch()
    check_output_dir(str(tmp_path), same)
    changed = {split for split in SPLITS if first[IMAGES][split] != other[IMAGES][split]}
    assert changed == {"train"}
    with pytest.raises(BadInputError, match=r"its images_and_labels is \{'train': '.*'\}, now \{'train': "):
        check_output_dir(str(tmp_path), other)
    # A record that was made before the images counted.
    write_record(tmp_path, {name: value for name, value in first.items() if name != IMAGES})
    check_output_dir(str(tmp_path), other)


def test_records_made_before_the_order_of_the_images_counted_go_on(tmp_path):
    settings = run_settings(*parse_args([]))
    then = {name: value for name, value in settings.items() if name != "train_sampling_strategy"}
    write_record(tmp_path, then)
    (tmp_path / "model.safetensors").touch()
    check_output_dir(str(tmp_path), settings)
    sequential = run_settings(*parse_args(["--train_sampling_strategy", "sequential"]))
    with pytest.raises(BadInputError, match="its train_sampling_strategy is None, now 'sequential'"):
        check_output_dir(str(tmp_path), sequential)
