"""A parser of dataclasses: flags, a file of settings beneath them, help in groups, errors in one line."""

from __future__ import annotations

import argparse
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hf_lpwd.config import FORMER_NAMES
from hf_lpwd.messages import BadInputError, refuse, unknown
from hf_lpwd.settings_file import read_settings

_OTHERS = "all other flags"
_LEAVE_OUT = "leave it out"

#: Flag of an older release of transformers or of its example scripts -> what to do instead.
OLD_FLAGS: dict[str, str] = {
    "overwrite_output_dir": "name another --output_dir, or delete that folder yourself",
    "use_auth_token": "use --token, or `hf auth login`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "evaluation_strategy": "use --eval_strategy",
    "evaluate_during_training": "use --eval_strategy steps",
    "warmup_ratio": "use --warmup_steps with a number below 1, a fraction of all steps",
    "no_cuda": "use --use_cpu",
    "use_mps_device": f"{_LEAVE_OUT}; a device that is there is used",
    "per_gpu_train_batch_size": "use --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use --per_device_eval_batch_size",
    "max_val_samples": "use --max_eval_samples",
    "max_predict_samples": "use --max_eval_samples, which also limits the test images",
    "feature_extractor_name": "use --image_processor_name",
    "adafactor": "use --optim adafactor",
    "group_by_length": f"{_LEAVE_OUT}; images have no length",
    "save_safetensors": f"{_LEAVE_OUT}; weights are always saved as safetensors",
    "sharded_ddp": "use --fsdp",
    "torchdynamo": "use --torch_compile",
    "push_to_hub_model_id": "use --hub_model_id",
    "push_to_hub_organization": "use --hub_model_id ORGANIZATION/NAME",
    "push_to_hub_token": "use --hub_token",
    "split_batches": "use --accelerator_config '{\"split_batches\": true}'",
    "dispatch_batches": "use --accelerator_config '{\"dispatch_batches\": true}'",
    **dict.fromkeys(("train_file", "test_file", "test_dir"), "use --dataset_name with the folder or file"),
    "validation_file": "use --dataset_name with the folder of both files",
    "tokenizer_name": "use --image_processor_name",
    "batch_size": "use --per_device_train_batch_size",
    "lr": "use --learning_rate",
    "epochs": "use --num_train_epochs",
    **{former: f"use --{name}" for former, name in FORMER_NAMES.items()},
    **dict.fromkeys(("fp16_backend", "half_precision_backend", "fp16_opt_level"), "use --fp16 or --bf16"),
    **dict.fromkeys(("include_inputs_for_metrics", "jit_mode_eval", "use_ipex", "mp_parameters"), _LEAVE_OUT),
    **dict.fromkeys(("ray_scope", "past_index", "tpu_num_cores"), _LEAVE_OUT),
}


class FlagParser(HfArgumentParser):
    """`HfArgumentParser` that also reads a file of settings and shows its flags in groups.

    Args:
        dataclass_types: The dataclasses to fill.
        groups: Title -> flags; the help shows these, ``--help-all`` also the other ones.
        **kwargs: For `ArgumentParser`.

    Attributes:
        flags: Name -> its argparse action.
        set_by_file: Names that a file or other settings have given a value.
    """

    def __init__(
        self, dataclass_types: Iterable[type], groups: Mapping[str, Sequence[str]], **kwargs: Any
    ) -> None:
        self.flags: dict[str, argparse.Action] = {}
        self.set_by_file: set[str] = set()
        self._titles = {name: title for title, names in groups.items() for name in names}
        self._shown, self._groups = [*groups, _OTHERS], dict[str, Any]()
        self._hidden: list[tuple[argparse.Action, str | None]] = []
        # HfArgumentParser adds the flags of the dataclasses.
        super().__init__(dataclass_types, add_help=False, allow_abbrev=False, **kwargs)
        self.add_argument("--config", help="YAML or JSON file of these flags; flags on the command line win.")
        options = self.add_argument_group("help")
        options.add_argument("-h", "--help", action="help", help="the flags that most runs need")
        options.add_argument("--help-all", nargs=0, action=_HelpAll, help="all flags")
        self._hints = {
            name: hint for part in self.dataclass_types for name, hint in get_type_hints(part).items()
        }

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """Adds a flag to the group that names it; the help of any other is hidden."""
        if kwargs.get("type") is string_to_bool and "nargs" not in kwargs:
            kwargs |= {"nargs": "?", "const": True}
        if not self._groups:
            self._groups = {title: self.add_argument_group(title) for title in self._shown}
        title = self._titles.get(str(names[0]).lstrip("-"), _OTHERS)
        action = self._groups[title].add_argument(*names, **kwargs)
        if title == _OTHERS:
            self._hidden.append((action, action.help))
            action.help = argparse.SUPPRESS
        self.flags.setdefault(action.dest, action)
        return action

    def print_all(self) -> None:
        """Prints the help of all flags."""
        for action, text in self._hidden:
            action.help = text
        self.print_help()

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line and exit code 2; the usage of 180 flags would hide it."""
        raise SystemExit(refuse(self.prog, message))

    def check_known(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the flags as given.

        Raises:
            BadInputError: One does not exist; the line says what is meant today, or the nearest name.
        """
        given, extra = self.parse_known_args(argv)
        if extra:
            flag = extra[0].partition("=")[0]
            raise _no_such("flag", flag, [f"--{name}" for name in self.flags])
        return given

    def use_file(self, path: str) -> None:
        """Takes defaults from a file of settings; see `use_settings`."""
        try:
            self.use_settings(read_settings(path))
        except BadInputError as error:
            line = str(error)
            raise BadInputError(line if line.startswith(path) else f"{path}: {line}") from None

    def use_settings(self, settings: Mapping[str, Any]) -> None:
        """Takes defaults from values by name, each checked as the flag of this name is; None is no value.

        Raises:
            BadInputError: There is no such flag, or it takes no such value.
        """
        for name in settings:
            if name not in self.flags:
                raise _no_such("setting", name, self.flags)
        values = {name: self._value(name, value) for name, value in settings.items() if value is not None}
        self.set_defaults(**values)
        self.set_by_file |= values.keys()

    def _value(self, name: str, value: Any) -> Any:
        kinds = _kinds(self._hints.get(name))
        if isinstance(value, dict) and dict in kinds:
            return value
        if list in kinds and isinstance(value, list):
            return [self._one(name, item, kinds) for item in value]
        converted = self._one(name, value, kinds)
        return [converted] if self.flags[name].nargs == "+" else converted

    def _one(self, name: str, value: Any, kinds: set[Any]) -> Any:
        flag = self.flags[name]
        # YAML reads a plain `no` as false.
        if value is False and "no" in (flag.choices or ()):
            value = "no"
        shown = reprlib.repr(value)
        if not isinstance(value, (str, bool, int, float)):
            raise BadInputError(f"{name} is {shown}, but takes {'values' if list in kinds else 'one value'}")
        if flag.type is str and isinstance(value, bool) and bool not in kinds and name not in _TRUE_OR_A_NAME:
            raise BadInputError(f"{name} is {value}, but takes text: put it in quotes")
        try:
            converted = flag.type(str(value)) if callable(flag.type) else value
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            kind = {int: "a whole number", float: "a number", string_to_bool: "true or false"}
            wanted = kind.get(flag.type, f"a {getattr(flag.type, '__name__', 'value')}")
            raise BadInputError(f"{name} is {shown}, but must be {wanted}") from None
        if flag.choices is not None and converted not in flag.choices:
            choices = ", ".join(map(str, flag.choices))
            raise BadInputError(f"{name} is {shown}, but must be one of {choices}")
        return converted


#: Flags of text that a file may also set to true.
_TRUE_OR_A_NAME = ("resume_from_checkpoint",)


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> NoReturn:
        parser.print_all()
        raise SystemExit(0)


def _no_such(what: str, name: str, known: Iterable[str]) -> BadInputError:
    """Returns the error for a name that is not `known`: what is used today, or the nearest name."""
    plain = str(name).lstrip("-").replace("-", "_")
    old = OLD_FLAGS.get(plain)
    if plain.startswith("no_") and any(flag.lstrip("-") == plain[3:] for flag in known):
        old = f"use --{plain[3:]} False"
    return BadInputError(f"there is no {what} {name!r}: {old}" if old else unknown(what, name, known))


def _kinds(hint: Any) -> set[Any]:
    """The types of a union, without their parameters."""
    parts = get_args(hint) if get_origin(hint) not in (list, dict) else (hint,)
    return {get_origin(part) or part for part in parts or (hint,)}
