from __future__ import annotations

import re

import pytest

from hf_lpwd.vision.data_args import DataTrainingArguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_val_split": 0.0}, "train_val_split must lie between 0 and 1, not 0.0"),
        ({"train_val_split": 1.0}, "train_val_split must lie between 0 and 1, not 1.0"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1, not 0"),
        ({"max_eval_samples": -1}, "max_eval_samples must be at least 1, not -1"),
        (
            {"augmentation": "mixup"},
            "augmentation must be one of random_resized_crop, crop_flip, crop, none, not 'mixup'",
        ),
        (
            {"dataset_name": "a", "train_dir": "b"},
            "give either dataset_name or train_dir (and validation_dir), not both",
        ),
        ({"validation_dir": "b"}, "validation_dir needs train_dir"),
        ({"dataset_config_name": "b"}, "dataset_config_name needs dataset_name"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DataTrainingArguments(**arguments)
