"""What a Trainer logs of each layer: its rate, weight norm, and gradient-to-weight ratio."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from hf_lpwd.diagnostics import layer_norms
from hf_lpwd.plan import LayerPlan, layer_name

#: First part of the keys of the per-layer values in the Trainer's logs.
LAYER_LOG_KEYS = ("weight_decay", "weight_norm", "grad_to_weight")


def without_layers(logs: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns logs without the per-layer values, which fill the screen."""
    return logs and {key: value for key, value in logs.items() if key.split("/")[0] not in LAYER_LOG_KEYS}


class QuietProgress(ProgressCallback):
    """The Trainer's progress bar, which prints what is logged but for the per-layer values."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints the logs."""
        super().on_log(args, state, control, logs=without_layers(logs), **kwargs)


class QuietPrinter(PrinterCallback):
    """The Trainer's printing without a progress bar, but for the per-layer values."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints the logs."""
        super().on_log(args, state, control, logs=without_layers(logs), **kwargs)


#: What prints to the console in a stock Trainer -> what takes its place.
QUIET = {ProgressCallback: QuietProgress, PrinterCallback: QuietPrinter}


class LayerLog(TrainerCallback):
    """Measures the layers after the optimizer's step, while gradients are still there."""

    def __init__(self) -> None:
        self.plan: LayerPlan | None = None
        self.values: dict[str, float] = {}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures, if this step will be logged."""
        step = state.global_step + 1
        due = args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0
        if self.plan is not None and (due or (step == 1 and args.logging_first_step)):
            self.values = layer_values(kwargs["optimizer"].param_groups, self.plan)

    def take(self) -> dict[str, float]:
        """The values of the step just made; each is given out once."""
        values, self.values = self.values, {}
        return values


def layer_values(groups: list[dict[str, Any]], plan: LayerPlan) -> dict[str, float]:
    """Returns each layer's decay rate, weight norm and gradient-to-weight ratio.

    Args:
        groups: Parameter groups with `param_names`; parameters that are not in the plan are left out.
        plan: The plan of the model.

    Returns:
        ``weight_decay/layer_i``, the highest rate in the layer; ``weight_norm/layer_i``, the L2 norm of its
        trained parameters; ``grad_to_weight/layer_i``, their gradient's norm (clipped, as the optimizer saw
        it) over that, left out where there is no gradient or the weights are all 0. Under DeepSpeed, which
        flattens the groups, there are rates alone. In a model of several stacks the keys are like
        ``weight_norm/text_model/layer_i``.
    """
    rates: dict[tuple[str, int], float] = defaultdict(float)
    weights: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    gradients: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        names, params = group.get("param_names", ()), group["params"]
        members = dict(zip(names, params, strict=True)) if len(names) == len(params) else {}
        for name in names:
            if name not in plan:
                continue
            layer = plan[name].stack, plan[name].layer
            rates[layer] = max(rates[layer], group["weight_decay"])
            parameter = members.get(name)
            # A process holds less than the whole of a flattened group, also where the group has one member.
            if parameter is None or parameter.numel() != plan[name].size:
                continue
            weights[layer].append(parameter)
            if parameter.grad is not None:
                gradients[layer].append(parameter.grad)
    weight_norms, grad_norms = layer_norms(weights), layer_norms(gradients)
    ratios = {
        layer: norm / weight_norms[layer] for layer, norm in grad_norms.items() if weight_norms[layer] > 0.0
    }
    return {
        f"{key}/{layer_name(stack, index)}": values[stack, index]
        for key, values in zip(LAYER_LOG_KEYS, (rates, weight_norms, ratios), strict=True)
        for stack, index in sorted(values)
    }
