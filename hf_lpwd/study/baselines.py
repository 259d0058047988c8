"""What baselines change beyond their flags: rates by layer, the optimizer, or what follows its step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import optimizer_from_plan
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import plan_layers
from hf_lpwd.study.decay_callbacks import CautiousDecay, DecayTowardsStart
from hf_lpwd.vision.prepare import Run
from hf_lpwd.vision.training_args import ImageTrainingArguments

_PERTURBATION = 1e-6


def baseline_callbacks(baseline: str | None) -> list[TrainerCallback]:
    """Returns the callbacks that a baseline needs in training."""
    if baseline == "l2_sp":
        return [DecayTowardsStart()]
    return [CautiousDecay()] if baseline == "cautious_decay" else []


def apply_baseline(
    baseline: str | None, run: Run, args: ImageTrainingArguments
) -> tuple[Run, LayerwiseDecay | None]:
    """Changes what a baseline changes beyond its flags.

    Args:
        baseline: Key of `BASELINES`, or None.
        run: From `finetune.prepare`, with the baseline's flags.
        args: Its training arguments; their decay settings are changed in place.

    Returns:
        The run with the rates as they will be, and the optimizer, if it is not what the trainer makes itself.

    Raises:
        ValueError: The model has several stacks of layers, for which a list of rates does not fit.
    """
    if baseline == "noise_floor":
        _perturb(run.model, args.seed)
    if baseline == "cautious_adamw":
        return run, _cautious_adamw(run, args)
    rates = [layer.rate for layer in run.plan.layers]
    if baseline == "linear_budget":
        args.weight_decay = run.plan.mean_rate
        args.layer_schedule = "uniform"
    elif baseline == "shuffled_rates":
        args.layer_schedule = _as_text(np.random.default_rng(args.seed).permutation(rates).tolist())
    elif baseline == "head_only":
        args.layer_schedule = _as_text([0.0] * (len(rates) - 1) + rates[-1:])
    else:
        return run, None
    config = LPWDConfig.from_args(args, layer_map=run.plan.layer_map)
    return replace(run, plan=plan_layers(run.model, config)), None


@torch.no_grad()
def _perturb(model: nn.Module, seed: int) -> None:
    """Changes each weight by about one part in a million."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.mul_(1.0 + _PERTURBATION * noise.to(parameter.device, parameter.dtype))


def _as_text(rates: list[float]) -> str:
    return ",".join(map(repr, rates))


def _cautious_adamw(run: Run, args: ImageTrainingArguments) -> LayerwiseDecay:
    from timm.optim import AdamWLegacy

    return optimizer_from_plan(run.plan, run.model, AdamWLegacy, caution=True, **_adam(args))


def _adam(args: ImageTrainingArguments) -> dict[str, Any]:
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
