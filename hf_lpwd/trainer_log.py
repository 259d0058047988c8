"""What a Trainer logs: each layer's rate, weight norm and gradient-to-weight ratio; what really decays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_lpwd.measure import DecayMeasurement, measure_decay
from hf_lpwd.parameters import whole
from hf_lpwd.plan import LayerPlan, layer_name

#: First part of the keys of the per-layer values in the Trainer's logs.
LAYER_LOG_KEYS = ("weight_decay", "weight_norm", "grad_to_weight")


class _Quiet(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints the logs without the per-layer values, which fill the screen."""
        shown = {k: value for k, value in (logs or {}).items() if k.split("/")[0] not in LAYER_LOG_KEYS}
        super().on_log(args, state, control, logs=shown, **kwargs)


class QuietProgress(_Quiet, ProgressCallback):
    """The Trainer's progress bar."""


class QuietPrinter(_Quiet, PrinterCallback):
    """The Trainer's printing without a progress bar."""


#: What prints to the console in a stock Trainer -> what takes its place.
QUIET = {ProgressCallback: QuietProgress, PrinterCallback: QuietPrinter}


class LayerLog(TrainerCallback):
    """Measures the layers after the optimizer's step, while gradients are still there."""

    def __init__(self) -> None:
        self.plan: LayerPlan | None = None
        self.values: dict[str, float] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
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
        trained parameters; ``grad_to_weight/layer_i``, the norm of their clipped gradient over that. Under
        DeepSpeed, which flattens the groups, rates alone. Of several stacks ``.../text_model/layer_i``.
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
            # A process holds only a part of a flattened group, also if the group has one member.
            if parameter is None or parameter.numel() != plan[name].size:
                continue
            weights[layer].append(parameter)
            if parameter.grad is not None:
                gradients[layer].append(parameter.grad)
    norms, grad_norms = layer_norms(weights), layer_norms(gradients)
    ratios = {layer: norm / norms[layer] for layer, norm in grad_norms.items() if norms[layer] > 0.0}
    return {
        f"{key}/{layer_name(stack, index)}": values[stack, index]
        for key, values in zip(LAYER_LOG_KEYS, (rates, norms, ratios), strict=True)
        for stack, index in sorted(values)
    }


def layer_norms(tensors_by_layer: Mapping[tuple[str, int], Sequence[Tensor]]) -> dict[tuple[str, int], float]:
    """Returns the L2 norm over all tensors of each layer that has any, with one transfer from the device.

    Shards of `DTensor` count as the whole tensor.
    """
    norms = {
        layer: whole(get_total_norm([tensor.detach() for tensor in tensors])).float()
        for layer, tensors in tensors_by_layer.items()
        if tensors
    }
    if not norms:
        return {}
    device = next(iter(norms.values())).device
    return dict(zip(norms, torch.stack([norm.to(device) for norm in norms.values()]).tolist(), strict=True))


class DecayReport(TrainerCallback):
    """Measures the optimizer's decay when training begins, prints it, and keeps it in the Trainer's log.

    Training is the same, bit for bit, with and without it. Under DeepSpeed, or around an optimizer that needs
    a closure, it prints the reason why nothing was measured.

    Args:
        plan: What is to be expected; see `measure_decay`. `LPWDTrainer` has it as `trainer.layer_plan`.
        quiet: Neither print nor log: only keep the `measurement`.

    Attributes:
        measurement: The measurement, once training has begun; None if there is none.

    Examples:
        >>> from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
        >>> config = ViTConfig(**sizes, num_hidden_layers=2, image_size=4, patch_size=2)
        >>> model = ViTForImageClassification(config)
        >>> dataset = [{"pixel_values": torch.ones(3, 4, 4), "labels": 0}] * 8
        >>> on_cpu = {"use_cpu": True, "dataloader_pin_memory": False}
        >>> args = TrainingArguments("out", weight_decay=0.05, max_steps=1, **on_cpu)
        >>> report = DecayReport(quiet=True)
        >>> Trainer(model, args, train_dataset=dataset, callbacks=[report]).train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        TrainOutput(global_step=1, ...)
        >>> report.measurement.findings[0]
        '1 parameter (vit.embeddings.cls_token) is decayed, against the usual rule: one-dimensional'
    """

    def __init__(self, plan: LayerPlan | None = None, *, quiet: bool = False) -> None:
        self.plan = plan
        self.quiet = quiet
        self.measurement: DecayMeasurement | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures; prints and logs, unless it is quiet."""
        try:
            self.measurement = measure_decay(kwargs["optimizer"], kwargs["model"], plan=self.plan)
        except (TypeError, ValueError, RuntimeError) as error:
            if state.is_world_process_zero and not self.quiet:
                print(f"The decay was not measured: {error}")
            return
        if self.quiet:
            return
        if state.is_world_process_zero:
            print(self.measurement)
        # A run that goes on from a checkpoint has it already.
        if not any("decay_findings" in entry for entry in state.log_history):
            found = {"decay_findings": self.measurement.findings, "decay_layers": self.measurement.rows()}
            state.log_history.append({"step": state.global_step, "epoch": state.epoch or 0.0, **found})
