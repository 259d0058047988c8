import base64
import json
import re
from argparse import Namespace
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import SchedulerType
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.arguments import DIGITS_RUN, arguments_from, make_parser, parse_args
from hf_lpwd.vision.flag_parser import OLD_FLAGS
from hf_lpwd.vision.launch import check_settings, set_up_launch, warn_of_no_effect
from hf_lpwd.vision.model_args import parse_overrides
from hf_lpwd.vision.run_facts import RunFacts, num_evaluations


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
    assert model_args.model_name_or_path is None
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
    _, data_args, training_args = parse_args(["--dataset_name", "beans", "--output_dir", "out"])
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
        (["--learning_rate", "-1"], "learning_rate is -1.0, but must be at least 0 and at most 10000"),
        (["--decay_timing", "later"], "invalid choice: 'later' (choose from 'l2', 'wd', 'rwd', 'pwd')"),
        (
            ["--layer_schedule", "liner"],
            "layer_schedule 'liner': did you mean 'linear'? (choose one of uniform,",
        ),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model_name_or_path", "x", "--config_overrides", "a=1"], "config_overrides changes a model"),
        (["--model_type", "vit", "--config_overrides", "hidden_size"], "config_overrides is 'hidden_size'"),
        (["--train_val_split", "1.5"], "train_val_split"),
        (["--train_dir", ""], "train_dir is empty: give it a value, or leave it out"),
        (["--dataset_name", " "], "dataset_name is empty: give it a value, or leave it out"),
        (["--model_name_or_path", ""], "model_name_or_path is empty: give it a value, or leave it out"),
        (["--metric_for_best_model", "f2"], "metric_for_best_model is 'f2', but must be one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, capsys):
    assert message in error_of(argv, capsys)


def test_a_flag_that_is_near_to_none_gets_no_suggestion(capsys):
    assert error_of(["--image_size", "0"], capsys) == "unknown flag '--image_size'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weigth_decay: 0.1", "unknown setting 'weigth_decay': did you mean 'weight_decay'?"),
        ("- 1", "must hold settings by name, not a list"),
        ("a: [", "cannot be read"),
        ("weight_decay: -1", "weight_decay is -1.0"),
        ("token: {unclosed", "cannot be read"),
        ("disable_tqdm: [false]", "run.yaml: disable_tqdm is [False], but takes one value"),
        ("model_type: [vit]", "model_type is ['vit'], but takes one value"),
        ("weight_decay: {a: 1}", "weight_decay is {'a': 1}, but takes one value"),
        ("report_to: [{a: 1}]", "report_to is {'a': 1}, but takes values"),
        (
            "per_device_train_batch_size: 8.5",
            "per_device_train_batch_size is 8.5, but must be a whole number",
        ),
        ("learning_rate: fast", "learning_rate is 'fast', but must be a number"),
        ("do_train: perhaps", "do_train is 'perhaps', but must be true or false"),
        ("dataset_name: no", "dataset_name is False, but takes text: put it in quotes"),
        ("lr_scheduler_type: cosin", "lr_scheduler_type is 'cosin', but must be one of linear, cosine"),
        ("evaluation_strategy: no", "there is no setting 'evaluation_strategy': use --eval_strategy"),
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


def test_a_file_is_read_as_the_flags_are(tmp_path):
    """YAML's ``no`` is false, 1e-3 is text, and a mapping may stand where a flag takes JSON."""
    config = tmp_path / "run.yaml"
    config.write_text(
        "eval_strategy: no\nsave_strategy: no\nlearning_rate: 1e-3\nwarmup_steps: 10\nmodel_type: vit\n"
        "config_overrides: {hidden_size: 64, hidden_act: relu}\nresume_from_checkpoint: true\n"
        "lr_scheduler_type: cosine\noutput_dir: 2026\nreport_to: [tensorboard]\nbf16_full_eval: off\n"
    )
    model_args, _, args = parse_args([str(config)])
    assert (args.eval_strategy, args.save_strategy, args.lr_scheduler_type) == ("no", "no", "cosine")
    assert (args.learning_rate, args.warmup_steps, args.output_dir) == (0.001, 10.0, "2026")
    assert parse_overrides(model_args.config_overrides) == {"hidden_size": 64, "hidden_act": "relu"}
    assert (args.resume_from_checkpoint, args.report_to) == ("True", ["tensorboard"])
    assert args.bf16_full_eval is False


def test_a_file_changes_the_digits_run_even_back_to_a_default(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 5.0e-5\n")
    model_args, _, args = parse_args([str(config)])
    assert (args.learning_rate, args.num_train_epochs) == (5e-5, DIGITS_RUN["num_train_epochs"])
    assert model_args.model_type == "vit"


def test_settings_need_no_command_line():
    _, data_args, args = arguments_from({"dataset_name": "beans", "learning_rate": "1e-3", "seed": 4})
    assert (data_args.dataset_name, args.learning_rate, args.seed) == ("beans", 1e-3, 4)
    with pytest.raises(BadInputError, match="unknown setting 'sede': did you mean 'seed'"):
        arguments_from({"sede": 1})


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--overwrite_output_dir", "name another --output_dir, or delete that folder yourself"),
        ("--use-auth-token", "use --token, or `hf auth login`"),
        ("--logging_dir=x", "set the environment variable TENSORBOARD_LOGGING_DIR"),
        ("--evaluation_strategy", "use --eval_strategy"),
        ("--warmup_ratio", "use --warmup_steps with a number below 1, a fraction of all steps"),
        ("--train_file", "use --dataset_name with the folder or file"),
        ("--batch_size", "use --per_device_train_batch_size"),
        ("--no_remove_unused_columns", "use --remove_unused_columns False"),
    ],
)
def test_flags_of_older_releases_are_answered_with_those_of_today(flag, instead, capsys):
    assert error_of([flag, "x"], capsys) == f"there is no flag {flag.partition('=')[0]!r}: {instead}"


def test_a_package_that_a_flag_needs_is_named(tmp_path, capsys):
    flags = ["--dataset_name", "x", "--deepspeed", str(tmp_path / "x.json")]
    assert error_of(flags, capsys).startswith("The 'deepspeed")
    with pytest.raises(BadInputError, match=r"^The 'deepspeed"):
        arguments_from({"dataset_name": "x", "deepspeed": str(tmp_path / "x.json")})


def test_no_old_flag_is_one_of_today():
    assert not OLD_FLAGS.keys() & make_parser().flags.keys()


def test_a_switch_needs_no_value():
    flags = ["--load_best_model_at_end", "--do_train", "--do_eval", "--disable_tqdm", "--greater_is_better"]
    args = parse_args(["--dataset_name", "beans", *flags])[2]
    assert (args.load_best_model_at_end, args.do_train, args.do_eval) == (True, True, True)
    assert (args.disable_tqdm, args.greater_is_better, args.do_predict) == (True, True, False)


def test_the_help_shows_groups_first_and_the_rest_on_request(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    short = capsys.readouterr().out
    titles = ["run:", "data:", "model:", "weight decay:", "augmentation:", "training:", "Hub:", "help:"]
    assert [line for line in short.splitlines() if line in titles] == titles
    assert "--layer_schedule" in short
    assert "--torch_empty_cache_steps" not in short
    with pytest.raises(SystemExit):
        parse_args(["--help-all"])
    whole = capsys.readouterr().out
    assert all(f"--{name}" in whole for name in make_parser().flags)


def test_arguments_change_nothing_outside_of_them():
    in_use = Namespace(is_zero3=lambda: True)
    set_hf_deepspeed_config(in_use)
    try:
        parse_args([])
        assert is_deepspeed_zero3_enabled()
    finally:
        unset_hf_deepspeed_config()


def test_what_a_package_is_missing_for_is_said_before_anything_loads():
    for changes, message in (
        ({"report_to": ["dvclive"]}, "report_to is 'dvclive', which is not installed"),
        ({"optim": "adamw_bnb_8bit"}, "optim is 'adamw_bnb_8bit': You need to install `bitsandbytes`"),
        ({"optim_args": "weight_decay=3"}, "optim_args sets weight_decay: use --weight_decay"),
        ({"optim_args": "lr=3"}, "optim_args sets lr: use --learning_rate"),
        ({"optim": "sgd", "optim_args": "lr=3"}, "optim_args sets lr: use --learning_rate"),
        ({"optim_args": "eps=1e-3"}, "optim_args sets eps, which optim 'adamw_torch_fused' does not use"),
        (
            {"optim_args": "momentum=0.9"},
            "optim_args sets momentum, which optim 'adamw_torch_fused' does not",
        ),
        (
            {"optim": "sgd", "optim_args": "momentum"},
            "optim_args is 'momentum', but must be like 'momentum=0",
        ),
        ({"label_names": ["label"]}, "label_names is ['label'], but the models take 'labels': leave it out"),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "lr_scheduler_type 'warmup_stable_decay' does not work with lr_scheduler_kwargs None: it needs "
            "the steps of the decay, such as '{\"num_decay_steps\": 100}'",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"decay_type": "linear"}},
            "does not work with lr_scheduler_kwargs {'decay_type': 'linear'}: it needs the steps of",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_type 'cosine_with_min_lr' does not work with lr_scheduler_kwargs None: One of min",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "lr_scheduler_kwargs is {'num_cycles': 2}, but lr_scheduler_type 'constant' takes none",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_settings(arguments_from(changes)[2])
    check_settings(
        arguments_from(
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}}
        )[2]
    )
    check_settings(arguments_from({"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"})[2])
    check_settings(arguments_from({"optim": "rmsprop", "optim_args": "eps=1e-3"})[2])


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"eval_strategy": "epoch"}, 2.5),
        ({"eval_strategy": "steps", "eval_steps": 50}, 5.0),
        # A tenth of all steps: the plan of a study took it for one step.
        ({"eval_strategy": "steps", "eval_steps": 0.1}, 10.0),
        ({"eval_strategy": "steps", "logging_steps": 25}, 10.0),
        ({"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}, 0.0),
    ],
)
def test_how_often_a_run_is_evaluated(settings, times):
    facts = RunFacts(**dict.fromkeys((field.name for field in fields(RunFacts)), None))
    args = arguments_from(
        settings | {"save_steps": 50, "save_strategy": "no", "load_best_model_at_end": False}
    )
    assert num_evaluations(replace(facts, steps=250, epochs=2.5), args[2]) == pytest.approx(times)


@pytest.mark.parametrize("steps", [0.1, 500])
def test_a_warmup_that_the_schedule_does_not_have_is_said(steps, caplog):
    for name in SchedulerType:
        needs = {
            "warmup_stable_decay": {"num_decay_steps": 3},
            "cosine_with_min_lr": {"min_lr": 0.1},
            "cosine_warmup_with_min_lr": {"min_lr": 0.1},
        }
        settings = {"lr_scheduler_type": name.value, "lr_scheduler_kwargs": needs.get(name.value)}
        check_settings(arguments_from(settings | {"warmup_steps": steps})[2])
        check_settings(arguments_from(settings | {"warmup_steps": 0})[2])
    assert caplog.messages == [
        f"warmup_steps {steps:g} has no effect: lr_scheduler_type {name!r} has no warmup, and "
        "'constant_with_warmup' has"
        for name in ("constant", "reduce_lr_on_plateau", "greedy")
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_steps": 20}, "eval_steps 20 has no effect: eval_strategy is epoch, not steps"),
        ({"eval_strategy": "steps", "eval_steps": 20, "save_strategy": "no"}, None),
        ({"save_steps": 30}, "save_steps 30 has no effect: save_strategy is epoch, not steps"),
        (
            {"logging_strategy": "epoch", "logging_steps": 5},
            "logging_steps 5 has no effect: logging_strategy is epoch, not steps",
        ),
        ({"ra_magnitude": 20}, "ra_magnitude 20 has no effect without auto_augment ra"),
        ({"ra_magnitude": 20, "auto_augment": "ra"}, None),
        (
            {"model_type": "vit", "image_processor_name": "a/b"},
            "image_processor_name has no effect: the model is trained from scratch, without one",
        ),
        (
            {"model_type": "vit", "model_revision": "v2"},
            "model_revision v2 has no effect: the model is trained from scratch",
        ),
        (
            {"model_name_or_path": "/", "model_revision": "v2"},
            "model_revision v2 has no effect: / is on this machine",
        ),
        ({"model_name_or_path": "a/b", "model_revision": "v2", "image_processor_name": "a/b"}, None),
    ],
)
def test_settings_that_nothing_reads_are_said(settings, said, caplog):
    warn_of_no_effect(*arguments_from(settings))
    assert caplog.messages == [said] * (said is not None)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("zero.json", None, "but there is no such file"),
        ("AAAA", None, "but there is no such file"),
        (
            "zero.json",
            "{nope",
            "which is not JSON: Expecting property name enclosed in double quotes: line 1",
        ),
        ('{"zero_optimization": ', None, "which is not JSON: Expecting value: line 1"),
        ("zero.json", "[1]", "but must hold an object whose zero_optimization has a stage from 0 to 3"),
        ('{"zero_optimization": 3}', None, "but must hold an object whose zero_optimization has a stage"),
        ('{"zero_optimization": {"stage": 9}}', None, "but must hold an object whose zero_optimization has"),
        (base64.b64encode(b'{"zero_optimization": {"stage": 9}}').decode(), None, "but must hold an object"),
    ],
)
def test_a_bad_configuration_of_deepspeed_is_one_line(name, text, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_lpwd.vision.training_args.is_deepspeed_available", lambda: True)
    if text is not None:
        Path(name).write_text(text)
    message = error_of(["--deepspeed", name], capsys)
    assert message.startswith(f"deepspeed is {name!r}, {why}")


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
