"""What identifies a run of the main job."""

import pytest
from encoded_images import CLASSES, load_from_parquet, table

from hf_lpwd.checkpoints.run_folder import check_output_dir
from hf_lpwd.checkpoints.run_record import write_record
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.run_settings import data_settings, run_settings


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
    assert data_settings(splits) == {"class_names": ["cat", "dog"], "rows": {"train": 8}}


def test_records_made_before_the_order_of_the_images_counted_go_on(tmp_path):
    settings = run_settings(*parse_args([]))
    then = {name: value for name, value in settings.items() if name != "train_sampling_strategy"}
    write_record(tmp_path, then)
    (tmp_path / "model.safetensors").touch()
    check_output_dir(str(tmp_path), settings)
    sequential = run_settings(*parse_args(["--train_sampling_strategy", "sequential"]))
    with pytest.raises(BadInputError, match="its train_sampling_strategy is None, now 'sequential'"):
        check_output_dir(str(tmp_path), sequential)
