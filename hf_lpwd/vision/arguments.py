"""The command line of `hf-lpwd train`: its dataclasses, the groups of its help, its default run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any

from hf_lpwd.config import SETTINGS
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.flag_parser import FlagParser
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.training_args import ImageTrainingArguments

#: The run of `hf-lpwd train` with neither dataset nor model: a ViT of 0.1M parameters on scikit-learn's
#: digits. Its initial weights have the scale 1/sqrt(hidden_size); with the usual 0.02 it hardly learns.
DIGITS_RUN: dict[str, Any] = {
    "model_type": "vit",
    "config_overrides": "hidden_size=64,num_hidden_layers=4,num_attention_heads=4,intermediate_size=128,"
    "image_size=8,patch_size=2,initializer_range=0.125,hidden_dropout_prob=0.0",
    "output_dir": "outputs/digits",
    "augmentation": "none",
    "num_train_epochs": 40,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "label_smoothing_factor": 0.1,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
}
#: One of these names data or model; without any, the run is `DIGITS_RUN`.
_CHOOSES = ("dataset_name", "train_dir", "validation_dir", "model_name_or_path", "model_type", "config_name")

#: What the help shows first.
_GROUPS: dict[str, tuple[str, ...]] = {
    "run": ("config", "output_dir", "resume_from_checkpoint", "resume_with_changes", "seed"),
    "data": (
        *("dataset_name", "dataset_config_name", "train_dir", "validation_dir"),
        *("train_val_split", "test_split"),
        *("max_train_samples", "max_eval_samples", "image_column_name", "label_column_name"),
        *("skip_bad_images", "skip_unlabelled"),
    ),
    "model": (
        *("model_name_or_path", "model_type", "config_name", "config_overrides", "image_processor_name"),
        *("model_revision", "ignore_mismatched_sizes", "token", "trust_remote_code", "cache_dir"),
    ),
    "weight decay": (*SETTINGS, "log_layers"),
    "augmentation": (
        *("augmentation", "auto_augment", "ra_magnitude", "random_erase", "mixup_alpha", "cutmix_alpha"),
        "label_smoothing_factor",
    ),
    "training": (
        *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim"),
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("max_grad_norm", "bf16", "fp16", "torch_compile", "use_cpu", "dataloader_num_workers"),
    ),
    "evaluation, checkpoints and logs": (
        *("do_train", "do_eval", "do_predict", "eval_strategy", "save_strategy", "load_best_model_at_end"),
        *("metric_for_best_model", "save_total_limit", "logging_steps", "report_to", "disable_tqdm"),
    ),
    "Hub": ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_token", "model_license"),
}

#: What `parse_args` returns.
Arguments = tuple[ModelArguments, DataTrainingArguments, ImageTrainingArguments]
_ERRORS = (ValueError, TypeError, ImportError, RuntimeError, OSError)


def make_parser(prog: str = "hf-lpwd train") -> FlagParser:
    """Returns the parser of `ModelArguments`, `DataTrainingArguments` and `ImageTrainingArguments`."""
    return FlagParser(
        (ModelArguments, DataTrainingArguments, ImageTrainingArguments),
        _GROUPS,
        prog=prog,
        usage=f"{prog} [--config FILE] [flags]",
        description="Fine-tune an image classifier with layer-wise weight decay. Without a dataset and a "
        "model, train a small ViT on scikit-learn's digits.",
    )


def parse_args(argv: Sequence[str], prog: str = "hf-lpwd train") -> Arguments:
    """Reads a command line; a mistake in it ends the process with one line and exit code 2.

    Args:
        argv: Without the program's name. One path that ends in .json or .yaml is read as ``--config``.
        prog: The program's name in errors and help.
    """
    parser = make_parser(prog)
    try:
        return _read(parser, argv)
    except _ERRORS as error:
        parser.error(_words(error))


def arguments_from(settings: Mapping[str, Any]) -> Arguments:
    """Reads settings by name, as a file of ``--config`` holds them.

    Raises:
        BadInputError: One of them does not exist, or has no such value.
    """
    parser = make_parser()
    try:
        parser.use_settings(settings)
        return _read(parser, ())
    except _ERRORS as error:
        raise BadInputError(_words(error)) from error


def _words(error: Exception) -> str:
    # transformers passes a sentence as the name of a package that is missing.
    return str(error.args[0]).strip() if isinstance(error, PackageNotFoundError) else str(error)


def _read(parser: FlagParser, argv: Sequence[str]) -> Arguments:
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        argv = ["--config", argv[0]]
    config = parser.check_known(argv).config
    if config is not None:
        parser.use_file(config)
    given = parser.parse_args(argv)
    if not any(getattr(given, name) for name in _CHOOSES):
        parser.set_defaults(
            **{name: value for name, value in DIGITS_RUN.items() if name not in parser.set_by_file}
        )
    model_args, data_args, training_args, _ = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    return model_args, data_args, training_args
