"""The command line of `hf-lpwd train`: flags, a YAML or JSON file beneath them, one-line errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lpwd.decay_groups import PWD_UNDER_DEEPSPEED
from hf_lpwd.messages import refuse, unknown
from hf_lpwd.training_args import LPWDTrainingArguments
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.model_args import ModelArguments

#: accelerate leaves fp16 out on a CPU, without a word.
FP16_ON_A_CPU = "mixed precision fp16 needs a GPU, and on a CPU would be float32: use bf16 or none"

_METRICS = ("accuracy", "f1_macro", "top5_accuracy", "loss")

#: The run of `hf-lpwd train` with neither data set nor model: a ViT of 0.1M parameters on scikit-learn's
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


@dataclass
class ImageTrainingArguments(LPWDTrainingArguments):
    """`LPWDTrainingArguments` with the defaults of a main job that selects the best epoch on validation.

    Where they are not set, `save_strategy` follows `eval_strategy`, and `load_best_model_at_end` is on if
    every saved model has been evaluated. Without `do_train`, `do_eval` and `do_predict` all three are done.
    """

    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When to evaluate on the validation split."}
    )
    save_strategy: SaveStrategy | str | None = field(
        default=None, metadata={"help": "When to save a checkpoint; default: as eval_strategy."}
    )
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={"help": "Whether to keep the checkpoint that was best on validation; on where it can be."},
    )
    metric_for_best_model: str | None = field(
        default="accuracy", metadata={"help": "Metric that selects the best checkpoint on validation."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "How many checkpoints are kept, the best one among them."}
    )
    model_license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the trained model, for its card, e.g. apache-2.0; default: none is named."
        },
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint of a run with other settings, as far as its state allows that."
        },
    )
    logging_steps: float = field(
        default=0.02, metadata={"help": "Log every so many steps; below 1, a share of all steps."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Has no effect here: batches hold what the model takes."}
    )

    def __post_init__(self) -> None:
        metric = str(self.metric_for_best_model).removeprefix("eval_")
        if metric not in _METRICS:
            raise ValueError(
                f"metric_for_best_model is {self.metric_for_best_model!r}, but must be one of "
                f"{', '.join(_METRICS)}"
            )
        evaluates = IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO
        if self.save_strategy is None:
            self.save_strategy = self.eval_strategy if evaluates else "epoch"
        if self.load_best_model_at_end is None:
            in_step = self.eval_strategy != "steps" or self.save_steps % (self.eval_steps or 1) == 0
            self.load_best_model_at_end = evaluates and self.save_strategy == self.eval_strategy and in_step
        if not (self.do_train or self.do_eval or self.do_predict):
            for name in ("do_train", "do_eval", "do_predict"):
                setattr(self, name, True)
        self.remove_unused_columns = False
        # Pinned memory serves copies to an accelerator; without one torch warns.
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        set_up_launch(self, self.decay_timing)


def set_up_launch(launched: Any, timing: str) -> None:
    """Refuses what cannot work as it was launched, and lets DeepSpeed's ZeRO 3 load and save whole weights.

    Args:
        launched: `TrainingArguments` or an `Accelerator`; of DeepSpeed's configuration in it one key is set.
        timing: When the weights decay.

    Raises:
        ValueError: Mixed precision is fp16 on a CPU, or the timing ``pwd`` under DeepSpeed.
    """
    if launched.mixed_precision == "fp16" and launched.device.type == "cpu":
        raise ValueError(FP16_ON_A_CPU)
    if launched.deepspeed_plugin is None:
        return
    if timing == "pwd":
        raise ValueError(PWD_UNDER_DEEPSPEED)
    # transformers would partition a model while it makes it: what no checkpoint holds would get other initial
    # weights than without DeepSpeed, and in timm's models partly none. It is partitioned before the training.
    unset_hf_deepspeed_config()
    # Else nothing that can be loaded would be in the folder of the run.
    zero = launched.deepspeed_plugin.deepspeed_config["zero_optimization"]
    zero["stage3_gather_16bit_weights_on_model_save"] = True


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends with one line; the usage of 180 flags would hide it."""
        raise SystemExit(refuse(self.prog, message))


def make_parser(prog: str = "hf-lpwd train") -> HfArgumentParser:
    """Returns the parser of `ModelArguments`, `DataTrainingArguments` and `ImageTrainingArguments`."""
    parser = _Parser(
        (ModelArguments, DataTrainingArguments, ImageTrainingArguments),
        prog=prog,
        description="Fine-tune an image classifier with layer-wise weight decay. Without a data set and a "
        "model, trains a small ViT on scikit-learn's digits.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML or JSON file of these flags; flags on the command line win.")
    return parser


def parse_args(
    argv: Sequence[str], prog: str = "hf-lpwd train"
) -> tuple[ModelArguments, DataTrainingArguments, ImageTrainingArguments]:
    """Reads a command line; a mistake in it ends the process with one line and exit code 2.

    Args:
        argv: Without the program's name. One path that ends in .json or .yaml is read as ``--config``.
        prog: The program's name in errors and help.
    """
    parser = make_parser(prog)
    argv = list(argv)
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        argv = ["--config", argv[0]]
    known = {action.dest for action in parser._actions} - {"help", "config"}
    given, extra = parser.parse_known_args(argv)
    if extra:
        parser.error(unknown("flag", extra[0].split("=")[0], [f"--{name}" for name in known]))
    try:
        settings = {} if given.config is None else _read_config(given.config, known)
        argv = _as_flags(settings, parser) + argv
        given = parser.parse_args(argv)
        places = (given.dataset_name, given.train_dir, given.validation_dir)
        if not any((*places, given.model_name_or_path, given.model_type, given.config_name)):
            argv = _as_flags(DIGITS_RUN, parser) + argv
        model_args, data_args, training_args, _ = parser.parse_args_into_dataclasses(
            argv, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        parser.error(str(error))
    return model_args, data_args, training_args


def _read_config(path: str, known: set[str]) -> dict[str, Any]:
    text = Path(path).expanduser().read_text(encoding="utf-8")
    try:
        settings = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings by name, not a {type(settings).__name__}")
    for name in settings:
        if name not in known:
            raise ValueError(f"{path}: {unknown('setting', name, known)}")
    return settings


def _as_flags(settings: dict[str, Any], parser: HfArgumentParser) -> list[str]:
    """Turns settings into flags, which are checked as those of the command line are."""
    takes_several = {action.dest for action in parser._actions if action.nargs in ("*", "+")}
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list) and name not in takes_several:
            parser.set_defaults(**{name: value})
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return flags
