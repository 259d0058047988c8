import pytest
from pictures import CLASSES, load_from_parquet, table

from hf_lpwd.vision import run_folder
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.run_folder import RECORD, check_output_dir, data_settings, run_settings, write_record


def settings_of(*argv):
    return run_settings(*parse_args(["--token", "hf_secret", "--hub_token", "hf_secret", *argv]))


def test_settings_hold_what_the_run_computes_and_no_secret():
    settings = settings_of("--layer_schedule", "cosine")
    assert settings["layer_schedule"] == "cosine"
    assert settings["model_type"] == "vit"
    assert {"output_dir", "logging_steps", "token", "hub_token"}.isdisjoint(settings)
    assert "hf_secret" not in str(settings)


def test_an_empty_or_new_folder_and_the_same_run_are_right(tmp_path):
    check_output_dir(str(tmp_path / "new"), settings_of())
    (tmp_path / ".gitkeep").touch()
    check_output_dir(str(tmp_path), settings_of())
    write_record(str(tmp_path), settings_of())
    check_output_dir(str(tmp_path), settings_of("--logging_steps", "7"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--layer_schedule", "uniform"],
            "its layer_schedule is 'linear', now 'uniform': name another folder",
        ),
        (["--decay_timing", "wd"], "its decay_timing is 'pwd', now 'wd'"),
        (["--seed", "1", "--weight_decay", "0.5"], r"\(and 1 other settings\)"),
        (["--dataset_name", "beans"], "its dataset_name is None, now 'beans'"),
        (["--model_name_or_path", "some/model"], "its model_name_or_path is None, now 'some/model'"),
        (["--num_train_epochs", "7"], "now 7.0: a run cannot be extended, name another folder"),
    ],
)
def test_another_run_is_refused(tmp_path, flags, message):
    write_record(str(tmp_path), settings_of())
    with pytest.raises(ValueError, match=message):
        check_output_dir(str(tmp_path), settings_of(*flags))


def test_a_run_goes_on_with_another_number_of_devices_if_the_steps_are_the_same(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(run_folder.logger, "warning_once", warnings.append)
    batches = "--per_device_train_batch_size", "--gradient_accumulation_steps"
    then = settings_of(batches[0], "8", batches[1], "3") | {"devices": 2}
    write_record(str(tmp_path), then)
    check_output_dir(str(tmp_path), then)
    assert not warnings
    check_output_dir(str(tmp_path), settings_of(batches[0], "16", batches[1], "3"))
    assert warnings == [
        f"{tmp_path}: the run had devices 2, now 1, per_device_train_batch_size 8, now 16. Each step has 48 "
        "samples as before, but the result is the same only but for rounding and what is drawn at random"
    ]
    with pytest.raises(ValueError, match=r"its seed is 42, now 1: name"):
        check_output_dir(str(tmp_path), settings_of(batches[0], "16", batches[1], "3", "--seed", "1"))
    refused = (
        "its devices is 2, now 1: a step has 24 samples instead of 48, go on with as many, or name another"
    )
    with pytest.raises(ValueError, match=refused):
        check_output_dir(str(tmp_path), settings_of(batches[0], "8", batches[1], "3"))


def test_a_data_set_of_the_same_name_with_other_rows_or_classes_is_refused(tmp_path):
    def settings(folder, labels):
        (tmp_path / folder).mkdir()
        splits = load_from_parquet(tmp_path / folder, {"train": table(labels, feature=CLASSES)})
        return settings_of() | data_settings(splits)

    then = settings("then", [0, 1] * 4)
    assert (then["class_names"], then["rows"]) == (["cat", "dog"], {"train": 8})
    write_record(str(tmp_path / "run"), then)
    check_output_dir(str(tmp_path / "run"), then)
    with pytest.raises(ValueError, match=r"its rows is \{'train': 8\}, now \{'train': 10\}: name another"):
        check_output_dir(str(tmp_path / "run"), settings("now", [0, 1] * 5))
    with pytest.raises(ValueError, match=r"class_names is \['cat', 'dog'\], now \['cat', 'cow'\]"):
        check_output_dir(str(tmp_path / "run"), then | {"class_names": ["cat", "cow"]})


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: name a folder"):
        check_output_dir(str(tmp_path / "file"), settings_of())
    with pytest.raises(ValueError, match="is not empty and holds no run of hf-lpwd"):
        check_output_dir(str(tmp_path), settings_of())
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        check_output_dir(str(tmp_path), settings_of())
