"""`hf-lpwd card`: writes a run's card with means and intervals over several seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hf_lpwd.commands.flags import command_parser
from hf_lpwd.messages import BadInputError
from hf_lpwd.study.over_seeds import over_seeds, read_run
from hf_lpwd.vision.hub.card import CARD, model_card, write_card


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd card`; returns its exit code."""
    parser = command_parser(
        "card",
        "Write the card of a run again, with the mean and its 95% interval over the same command run with "
        "several seeds. The weights, and the figures in the metadata, stay those of the run.",
    )
    parser.add_argument("output_dir", help="output folder of a run of hf-lpwd train, whose card is written")
    parser.add_argument(
        "--over_seeds",
        nargs="+",
        required=True,
        metavar="DIR",
        help="output folders of the runs with other seeds; output_dir may be among them",
    )
    args = parser.parse_args(argv)
    folder = Path(args.output_dir)
    run = read_run(folder)
    real = os.path.realpath(folder)
    others = [Path(name) for name in args.over_seeds if os.path.realpath(name) != real]
    summary = over_seeds(run, [read_run(other) for other in others])
    card = folder / CARD
    if card.exists() and card.read_bytes() != str(model_card(run.facts)).encode():
        raise BadInputError(f"{card} is not as hf-lpwd wrote it, and your changes would be lost: rename it")
    write_card(folder, {**run.facts, "over_seeds": summary})
    for row in summary["rows"]:
        mean, low, high = (f"{row[name]:.4f}" for name in ("mean", "low", "high"))
        print(f"{row['split']} {row['metric']}: {mean}, 95% interval {low} to {high}, n = {1 + len(others)}")
    print(f"written: {card}")
    return 0
