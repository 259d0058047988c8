import json
from argparse import Namespace

import pytest
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config

from hf_lpwd.vision.arguments import DIGITS_RUN, parse_args, set_up_launch
from hf_lpwd.vision.model_args import parse_overrides


def error_of(argv, capsys):
    """The one line on standard error, of a command line that has to end with exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        parse_args(argv)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hf-lpwd train: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("hf-lpwd train: error: ").rstrip()


def test_without_data_and_model_it_is_the_digits_run():
    model_args, data_args, training_args = parse_args([])
    assert model_args.model_type == "vit"
    assert model_args.from_scratch
    assert (data_args.dataset_name, data_args.train_dir) == (None, None)
    assert training_args.output_dir == "outputs/digits"
    assert training_args.num_train_epochs == DIGITS_RUN["num_train_epochs"]
    assert (training_args.decay_timing, training_args.layer_schedule) == ("pwd", "linear")
    assert (training_args.do_train, training_args.do_eval, training_args.do_predict) == (True, True, True)


def test_flags_win_over_the_digits_run():
    _, _, training_args = parse_args(["--decay_timing", "rwd", "--num_train_epochs", "2"])
    assert (training_args.decay_timing, training_args.num_train_epochs) == ("rwd", 2.0)
    assert training_args.learning_rate == DIGITS_RUN["learning_rate"]


def test_a_data_set_means_the_defaults_of_transformers(tmp_path):
    model_args, data_args, training_args = parse_args(["--dataset_name", "beans", "--output_dir", "out"])
    assert not model_args.from_scratch
    assert data_args.dataset_name == "beans"
    assert (training_args.num_train_epochs, training_args.learning_rate) == (3.0, 5e-5)
    assert training_args.per_device_train_batch_size == 8


def test_a_command_line_of_the_example_script_is_read(tmp_path):
    """The one in the README of transformers' image classification examples."""
    line = (
        "--dataset_name beans --output_dir ./beans_outputs/ --remove_unused_columns False "
        "--label_column_name labels --do_train --do_eval --learning_rate 2e-5 --num_train_epochs 5 "
        "--per_device_train_batch_size 8 --per_device_eval_batch_size 8 --logging_strategy steps "
        "--logging_steps 10 --eval_strategy epoch --save_strategy epoch --load_best_model_at_end True "
        "--save_total_limit 3 --seed 1337"
    )
    _, data_args, training_args = parse_args(line.split())
    assert data_args.label_column_name == "labels"
    assert (training_args.do_train, training_args.do_eval, training_args.do_predict) == (True, True, False)
    assert (training_args.logging_steps, training_args.save_total_limit, training_args.seed) == (10, 3, 1337)
    assert training_args.load_best_model_at_end is True
    assert training_args.remove_unused_columns is False


@pytest.mark.parametrize(
    ("flags", "save_strategy", "best"),
    [
        ([], "epoch", True),
        (["--eval_strategy", "no"], "epoch", False),
        (["--eval_strategy", "steps", "--eval_steps", "100"], "steps", True),
        (["--eval_strategy", "steps", "--eval_steps", "300"], "steps", False),
        (["--save_strategy", "no"], "no", False),
        (["--load_best_model_at_end", "False"], "epoch", False),
    ],
)
def test_the_best_checkpoint_is_kept_where_it_can_be(flags, save_strategy, best):
    _, _, training_args = parse_args(["--dataset_name", "beans", *flags])
    assert training_args.save_strategy == save_strategy
    assert training_args.load_best_model_at_end is best


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_flags_win_over_the_config_file(tmp_path, suffix):
    settings = {
        "dataset_name": "beans",
        "layer_schedule": "power:2",
        "learning_rate": 0.001,
        "do_train": True,
        "report_to": ["tensorboard", "wandb"],
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "model_name_or_path": None,
        "config_overrides": None,
    }
    config = tmp_path / f"run{suffix}"
    config.write_text(json.dumps(settings))  # JSON is YAML too
    _, data_args, training_args = parse_args(["--config", str(config), "--learning_rate", "0.002"])
    assert data_args.dataset_name == "beans"
    assert (training_args.layer_schedule, training_args.learning_rate) == ("power:2", 0.002)
    assert training_args.report_to == ["tensorboard", "wandb"]
    assert training_args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training_args.do_predict is False
    assert parse_args([str(config)])[2].learning_rate == 0.001


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layer_schedul", "linear"], "unknown flag '--layer_schedul': did you mean '--layer_schedule'?"),
        (["--weight_decay", "-0.1"], "weight_decay is -0.1, but must be finite and >= 0"),
        (["--weight_decay", "nan"], "weight_decay is nan, but must be finite and >= 0"),
        (["--weight_decay", "much"], "invalid float value: 'much'"),
        (["--learning_rate", "-1"], "learning_rate is -1.0, but must be finite and >= 0"),
        (["--decay_timing", "later"], "invalid choice: 'later' (choose from 'l2', 'wd', 'rwd', 'pwd')"),
        (
            ["--layer_schedule", "liner"],
            "layer_schedule 'liner': did you mean 'linear'?; choose one of uniform,",
        ),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model_name_or_path", "x", "--config_overrides", "a=1"], "config_overrides changes a model"),
        (["--model_type", "vit", "--config_overrides", "hidden_size"], "config_overrides is 'hidden_size'"),
        (["--train_val_split", "1.5"], "train_val_split"),
        (["--metric_for_best_model", "f2"], "metric_for_best_model is 'f2', but must be one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, capsys):
    assert message in error_of(argv, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weigth_decay: 0.1", "unknown setting 'weigth_decay': did you mean 'weight_decay'?"),
        ("- 1", "must hold settings by name, not a list"),
        ("a: [", "cannot be read"),
        ("weight_decay: -1", "weight_decay is -1.0"),
        ("token: {unclosed", "cannot be read"),
    ],
)
def test_bad_config_files(tmp_path, text, message, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert message in error_of(["--config", str(config)], capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hidden_size=64,hidden_act=gelu", {"hidden_size": 64, "hidden_act": "gelu"}),
        ("depths=[2,2,6,2],drop_path_rate=0.1", {"depths": [2, 2, 6, 2], "drop_path_rate": 0.1}),
        ('{"depths": [1, 2], "qkv_bias": false}', {"depths": [1, 2], "qkv_bias": False}),
    ],
)
def test_parse_overrides(text, expected):
    assert parse_overrides(text) == expected


def test_under_deepspeed_whole_weights_are_loaded_and_saved_and_pwd_is_refused():
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}
    launched = Namespace(
        mixed_precision="no",
        device=torch.device("cpu"),
        deepspeed_plugin=Namespace(deepspeed_config={"zero_optimization": zero}),
    )
    in_use = Namespace(is_zero3=lambda: True)
    set_hf_deepspeed_config(in_use)
    with pytest.raises(ValueError, match="timing 'pwd' changes the weights before the forward pass, but"):
        set_up_launch(launched, "pwd")
    assert is_deepspeed_zero3_enabled()
    set_up_launch(launched, "rwd")
    assert not is_deepspeed_zero3_enabled()
    assert zero == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
