"""`hf-lpwd explain MODEL`: layers, rates and exemptions of a model or a run, without its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_lpwd.commands.flags import add_config, skeleton
from hf_lpwd.config import SETTINGS, LPWDConfig
from hf_lpwd.files import RECORD
from hf_lpwd.lpwd_arguments import LPWDArguments, setting
from hf_lpwd.messages import OneLineParser, refuse


@dataclass
class _Settings(LPWDArguments):
    weight_decay: float = setting("weight_decay", default=0.05)
    log_layers: bool = field(default=False, init=False)


class _Parser(HfArgumentParser):
    error = OneLineParser.error


def make_parser() -> HfArgumentParser:
    """Returns the parser of `hf-lpwd explain`."""
    parser = _Parser(
        _Settings,
        prog="hf-lpwd explain",
        description="Show a model's layers, the decay rate of each, and what does not decay and why. "
        "Needs the model's configuration, not its weights.",
        allow_abbrev=False,
    )
    add_config(parser, also="the folder of a run, whose own decay is shown; ")
    return parser


def _settings_of_run(model: str) -> dict[str, Any]:
    """The decay of a run of `hf-lpwd train`, which its folder records; nothing of any other model."""
    try:
        record = json.loads((Path(model) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: record[name] for name in SETTINGS if record.get(name) is not None}


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd explain`."""
    parser = make_parser()
    given = parser.parse_args(argv)  # refuses unknown flags, which the next only collects
    parser.set_defaults(**_settings_of_run(given.model))
    try:
        settings, args = parser.parse_args_into_dataclasses(list(argv), look_for_args_file=False)
        config = LPWDConfig.from_args(settings)
        from hf_lpwd.plan import plan_layers

        plan = plan_layers(skeleton(args), config)
    except (TypeError, ValueError) as error:
        return refuse(parser.prog, error)
    print(json.dumps(plan.to_dict(), indent=2) if args.json else plan)
    return 0
