"""The former place of `hf_lpwd.vision.data.data_args`, for code that imports it from here."""

from hf_lpwd.vision.data.data_args import DataTrainingArguments

__all__ = ["DataTrainingArguments"]
