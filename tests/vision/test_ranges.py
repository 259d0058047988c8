"""Every number that a run takes has a range, and what is outside of it never reaches the training."""

import math
from dataclasses import fields
from types import SimpleNamespace

import pytest

from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.training_args import RANGES, ImageTrainingArguments, check_ranges

# Checked where they are defined.
ELSEWHERE = {"max_steps", "weight_decay", "layer_lr_decay", "train_val_split", "test_split"} | {
    *("max_train_samples", "max_eval_samples", "ra_magnitude", "random_erase", "mixup_alpha", "cutmix_alpha"),
    "local_rank",  # the launcher's, which overrules it
}


def numbers():
    parts = (ModelArguments, DataTrainingArguments, ImageTrainingArguments)
    return {f.name for part in parts for f in fields(part) if {"int", "float"} & set(_words(f.type))}


def _words(hint):
    return str(hint).replace("<class '", "").replace("'>", "").replace("|", " ").split()


def test_every_number_has_a_range():
    assert "adam_beta1" in numbers()
    assert numbers() <= RANGES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", sorted(numbers() - {"local_rank"}))
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-7", "1" * 23])
def test_absurd_numbers_end_in_one_line(name, value, capsys):
    flags = [f"--{name}={value}", "--dataset_name", "x", "--output_dir", "y"]
    if value == "1" * 23 and name in ("max_train_samples", "max_eval_samples"):
        assert getattr(parse_args(flags)[1], name) == int(value)  # more than there are: all of them
        return
    if value == "1" * 23 and name in ("weight_decay", "mixup_alpha", "cutmix_alpha"):
        return  # lr * weight_decay is refused with the model; a Beta distribution may be as narrow
    with pytest.raises(SystemExit) as end:
        parse_args(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert value.lstrip("-")[:3] in error


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("label_smoothing_factor", (1.0, 1.5, -0.1), (0.0, 0.99)),
        ("gradient_accumulation_steps", (0, -1), (1, 1024)),
        ("adam_beta2", (1.0, -0.1), (0.0, 0.999)),
        ("adam_epsilon", (math.inf, math.nan, -1e-8, 0.0), (1e-12, 1e-8, 1.0)),
        ("num_train_epochs", (0.0, -1.0), (0.5, 300.0)),
        ("max_steps", (0, -2, 10**22), (-1, 1, 10**9)),
        ("seed", (-1, 2**32), (0, 2**32 - 1)),
        ("save_total_limit", (0, -1), (None, 1)),
        ("logging_steps", (0.0, math.nan), (0.02, 1, 500.0)),
    ],
)
def test_the_ends_of_the_ranges(name, wrong, right):
    for value in right:
        check_ranges(SimpleNamespace(**{name: value}))
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} is {value}, but must be (at least|above) "):
            check_ranges(SimpleNamespace(**{name: value}))
