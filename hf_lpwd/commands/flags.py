"""Flags that several commands have, and what they mean."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hf_lpwd.messages import BadInputError, OneLineParser

if TYPE_CHECKING:
    from torch import nn

TOKEN = "token for the Hub; default: the one of `hf auth login`"


def command_parser(command: str, description: str) -> OneLineParser:
    """Returns a parser without flags for `hf-lpwd COMMAND`."""
    return OneLineParser(prog=f"hf-lpwd {command}", description=description, allow_abbrev=False)


def add_trained_model(parser: argparse.ArgumentParser) -> None:
    """Adds the trained model of a command that classifies images, and how many images it takes at once."""
    parser.add_argument("run", help="output folder of a run of hf-lpwd train, or a model's name on the Hub")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once (default: %(default)s)")


def add_config(parser: argparse.ArgumentParser, also: str = "") -> None:
    """Adds the model of a command that needs no weights; see `skeleton`.

    Args:
        parser: Gets the flags.
        also: What else the model can be.
    """
    parser.add_argument(
        "model",
        help=f"{also}a folder or configuration file, a transformers model type (vit), a timm architecture "
        "(vit_small_patch16_224, timm/resnet18.a1_in1k), or a name on the Hub",
    )
    parser.add_argument("--config_overrides", help="changes to the configuration: 'num_hidden_layers=4'")
    parser.add_argument("--model_revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument("--token", help=TOKEN)
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run model code from the Hub on this machine"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every parameter's name")


def skeleton(args: argparse.Namespace) -> nn.Module:
    """Builds the model of `add_config` on the meta device.

    Raises:
        ValueError: There is no such model.
    """
    from hf_lpwd.vision.models import model_skeleton

    return model_skeleton(
        args.model,
        args.config_overrides,
        revision=args.model_revision,
        token=args.token,
        trust_remote_code=args.trust_remote_code,
    )


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """Refuses flags that are below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise BadInputError(f"{name} must be at least 1, not {getattr(args, name)}")
