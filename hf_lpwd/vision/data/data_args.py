"""The flags that say which data to train and evaluate on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers.hf_argparser import HfArg

AUGMENTATIONS = ("random_resized_crop", "crop_flip", "crop", "none")


@dataclass
class DataTrainingArguments:
    """Which data to train and evaluate on; the flags of transformers' image classification example.

    Raises:
        ValueError: If a value is out of range or two flags contradict each other.
    """

    dataset_name: str | None = HfArg(
        default=None,
        help="Name of a dataset on the Hub, a local folder, an archive (zip, tar), or files (parquet, "
        "csv, tsv, json; a glob is allowed). Without it and without --train_dir: the digits that ship "
        "inside scikit-learn.",
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the dataset on the Hub.")
    train_dir: str | None = HfArg(default=None, help="Folder of training images, one folder a class.")
    validation_dir: str | None = HfArg(default=None, help="Folder of validation images, one folder a class.")
    train_val_split: float = HfArg(
        default=0.15, help="Fraction of the training data cut off for validation where the dataset has none."
    )
    test_split: float | None = HfArg(
        default=None,
        help="Fraction of the training data cut off for a test split first, where the dataset has "
        "none; the same images for every seed.",
    )
    max_train_samples: int | None = HfArg(
        default=None, help="Train on at most this many images, chosen by seed and class."
    )
    max_eval_samples: int | None = HfArg(
        default=None, help="Validate and test on at most this many images each, chosen by seed and class."
    )
    image_column_name: str | None = HfArg(default=None, help="Column of the images. Default: image or img.")
    label_column_name: str | None = HfArg(
        default=None, help="Column of the labels. Default: label, labels or fine_label."
    )
    skip_bad_images: bool = HfArg(
        default=False, help="Leave out images that cannot be decoded, and count them, instead of stopping."
    )
    skip_unlabelled: bool = HfArg(
        default=False,
        help="Leave out rows without a label (empty or -1), and count them, instead of stopping.",
    )
    augmentation: str | None = HfArg(
        default=None,
        help="What is done to training images. random_resized_crop: a random part, resized, and a "
        "horizontal flip. crop_flip: a shift by up to 1/8 of the side with zeros moved in, and a "
        "horizontal flip. crop: the shift alone, for images such as digits whose mirror image means "
        "something else. none. Default: crop for scikit-learn's digits, crop_flip for images of up to "
        "64 pixels a side, else random_resized_crop.",
        metadata={"choices": list(AUGMENTATIONS)},
    )
    auto_augment: str | None = HfArg(
        default=None,
        help="ra: RandAugment, two random operations on each training image after the augmentation.",
        metadata={"choices": ["ra"]},
    )
    ra_magnitude: int = HfArg(default=9, help="How strong RandAugment's operations are, from 0 to 30.")
    random_erase: float = HfArg(
        default=0.0, help="Probability with which a training image loses a random box, e.g. 0.1."
    )
    mixup_alpha: float = HfArg(
        default=0.0,
        help="MixUp: average each training image and its label with another's by a fraction from "
        "Beta(alpha, alpha), e.g. 0.2. 0: off.",
    )
    cutmix_alpha: float = HfArg(
        default=0.0,
        help="CutMix: put a box of another training image into each one, and mix the labels by its "
        "area, from Beta(alpha, alpha), e.g. 1.0. 0: off. With mixup_alpha: one of both a batch.",
    )

    def __post_init__(self) -> None:
        for name in ("dataset_name", "train_dir", "validation_dir"):
            # A shell variable that is not set; as a path it would be the working directory.
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ValueError(f"{name} is empty: give it a value, or leave it out")
        for name in ("train_val_split", "test_split"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}")
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.augmentation is not None and self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"augmentation must be one of {', '.join(AUGMENTATIONS)}, not {self.augmentation!r}"
            )
        if self.auto_augment not in (None, "ra"):
            raise ValueError(f"auto_augment must be ra or not given, not {self.auto_augment!r}")
        if not 0 <= self.ra_magnitude <= 30:
            raise ValueError(f"ra_magnitude must lie between 0 and 30, not {self.ra_magnitude}")
        if not 0 <= self.random_erase <= 1:
            raise ValueError(f"random_erase is a probability, from 0 to 1, not {self.random_erase}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        if self.dataset_name is not None and (self.train_dir or self.validation_dir):
            raise ValueError("give either dataset_name or train_dir (and validation_dir), not both")
        if self.validation_dir and not self.train_dir:
            raise ValueError("validation_dir needs train_dir")
        if self.dataset_config_name and self.dataset_name is None:
            raise ValueError("dataset_config_name needs dataset_name")
