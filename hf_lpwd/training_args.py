"""`LPWDTrainingArguments`, apart from the Trainer so that a command line is read before that is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_lpwd.config import COUPLINGS, TIMINGS, check_timing
from hf_lpwd.schedules import SCHEDULES, check_rate, parse_schedule


@dataclass
class LPWDTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of layer-wise weight decay.

    `weight_decay` is lambda, the rate that the schedule distributes; `optim` is the base optimizer.

    Raises:
        ValueError: A setting has no such value.
    """

    decay_timing: str = field(
        default="pwd",
        metadata={
            "help": f"When weight decay is applied: {', '.join(TIMINGS)} (coupled L2, decoupled as in AdamW, "
            "after the update, before the gradient)."
        },
    )
    layer_schedule: str = field(
        default="linear",
        metadata={
            "help": f"How weight_decay is distributed over the layers: {', '.join(SCHEDULES)}, "
            "power:<exponent>, or the rates of layers 0..n separated by commas."
        },
    )
    decay_coupling: str = field(
        default="lr",
        metadata={"help": f"What a step multiplies the rate by: {' or '.join(COUPLINGS)} (nothing)."},
    )
    match_decay_budget: bool = field(
        default=False,
        metadata={"help": "Scale the rates so that their mean over all decayed scalars is weight_decay."},
    )
    decay_all: bool = field(
        default=False, metadata={"help": "Decay biases, norms, position and token embeddings too."}
    )
    no_decay_pattern: str | None = field(
        default=None,
        metadata={"help": "Regular expression of parameter names that alone do not decay."},
    )

    def __post_init__(self) -> None:
        check_timing(self.decay_timing, self.decay_coupling)
        parse_schedule(self.layer_schedule)
        check_rate(self.weight_decay, "weight_decay")
        check_rate(self.learning_rate, "learning_rate")
        if self.decay_all and self.no_decay_pattern is not None:
            raise ValueError("decay_all leaves nothing exempt, but no_decay_pattern is given: drop one")
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the token out of pickles: Trainer writes one, training_args.bin, into every checkpoint."""
        return {**self.__dict__, "hub_token": None}
