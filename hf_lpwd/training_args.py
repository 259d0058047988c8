"""`transformers.TrainingArguments` with the decay settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from hf_lpwd.lpwd_arguments import LPWDArguments, setting
from hf_lpwd.schedules import check_rate


@dataclass
class LPWDTrainingArguments(LPWDArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the settings of layer-wise weight decay.

    `weight_decay` is the rate that the schedule distributes; `optim` is the base optimizer. To add the
    decay settings to another class of arguments, such as trl's `SFTConfig`, use `LPWDArguments`.

    Raises:
        ValueError: A setting has no such value.

    Examples:
        >>> args = LPWDTrainingArguments("out", weight_decay=0.05, decay_timing="rwd")
        >>> args.decay_timing, args.layer_schedule, args.optim.value
        ('rwd', 'linear', 'adamw_torch_fused')
    """

    weight_decay: float = setting("weight_decay", default=0.0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            is_other = issubclass(base, TrainingArguments) and not issubclass(base, LPWDArguments)
            if is_other and base is not TrainingArguments:
                raise TypeError(
                    f"{cls.__name__} would have the defaults of TrainingArguments in place of those of "
                    f"{base.__name__}: write class {cls.__name__}(LPWDArguments, {base.__name__})"
                )

    def __post_init__(self) -> None:
        check_rate(self.learning_rate, "learning_rate")
        super().__post_init__()
