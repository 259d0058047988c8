"""`hf-lpwd explain MODEL`: layers, rates and exemptions of a model, from its configuration alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from hf_lpwd.explain import explain
from hf_lpwd.messages import refuse
from hf_lpwd.schedules import SCHEDULES, parse_schedule


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `hf-lpwd explain`."""
    parser = argparse.ArgumentParser(
        prog="hf-lpwd explain",
        description="Show a model's layers, the decay rate of each, and what does not decay and why. "
        "Needs the model's configuration, not its weights.",
    )
    parser.add_argument(
        "model",
        help="a folder or configuration file, a transformers model type (vit), a timm architecture "
        "(vit_small_patch16_224, timm/resnet18.a1_in1k), or a name on the Hub",
    )
    parser.add_argument("--weight_decay", type=float, default=0.05, help="lambda (default: %(default)s)")
    parser.add_argument(
        "--layer_schedule",
        default="linear",
        help=f"{', '.join(SCHEDULES)}, power:<exponent>, or the rates of layers 0..n separated by commas "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--match_decay_budget",
        action="store_true",
        help="scale the rates so that their mean over all decayed scalars is lambda",
    )
    parser.add_argument("--decay_all", action="store_true", help="decay biases, norms and embeddings too")
    parser.add_argument("--no_decay_pattern", help="regular expression of names that alone do not decay")
    parser.add_argument("--config_overrides", help="changes to the configuration: 'num_hidden_layers=4'")
    parser.add_argument("--model_revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument("--token", help="token for the Hub; default: the one of `hf auth login`")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run model code from the Hub on this machine"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every parameter's name")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd explain`.

    Args:
        argv: Command line without the program's name.

    Returns:
        The exit code: 0, or 2 where the input is at fault, which one line on standard error then says.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        schedule = parse_schedule(args.layer_schedule)
        from hf_lpwd.vision.models import model_skeleton

        model = model_skeleton(
            args.model,
            args.config_overrides,
            revision=args.model_revision,
            token=args.token,
            trust_remote_code=args.trust_remote_code,
        )
        explanation = explain(
            model,
            weight_decay=args.weight_decay,
            schedule=schedule,
            match_budget=args.match_decay_budget,
            decay_all=args.decay_all,
            no_decay=args.no_decay_pattern,
        )
    except ValueError as error:
        return refuse(parser.prog, error)
    print(json.dumps(asdict(explanation), indent=2) if args.json else explanation)
    return 0
