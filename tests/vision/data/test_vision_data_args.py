from __future__ import annotations

import re

import pytest

from hf_lpwd.vision.data.data_args import DataTrainingArguments


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
        ({"auto_augment": "ta_wide"}, "auto_augment must be ra or not given, not 'ta_wide'"),
        ({"ra_magnitude": 31}, "ra_magnitude must lie between 0 and 30, not 31"),
        ({"ra_magnitude": -1}, "ra_magnitude must lie between 0 and 30, not -1"),
        ({"random_erase": 1.5}, "random_erase is a probability, from 0 to 1, not 1.5"),
        ({"random_erase": float("nan")}, "random_erase is a probability, from 0 to 1, not nan"),
        ({"mixup_alpha": -0.2}, "mixup_alpha must be finite and at least 0, not -0.2"),
        ({"cutmix_alpha": float("inf")}, "cutmix_alpha must be finite and at least 0, not inf"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DataTrainingArguments(**arguments)
