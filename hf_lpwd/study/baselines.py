"""What baselines change beyond their flags: rates by layer, the optimizer, or what follows its step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_lpwd.config import LPWDConfig
from hf_lpwd.factory import optimizer_from_plan
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import plan_layers
from hf_lpwd.study.callbacks import decayed
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

    adam = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return optimizer_from_plan(run.plan, run.model, AdamWLegacy, caution=True, **adam)


class DecayTowardsStart(TrainerCallback):
    """Makes decay pull towards the weights that training began with: ``-eta lambda (theta - theta_0)``.

    The decoupled form of L2-SP; with a pretrained model the start is the pretrained weights.

    Source: Li et al., *Explicit Inductive Bias for Transfer Learning with Convolutional Networks* (2018).
    """

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the weights."""
        self.start = {name: p.detach().clone() for name, p in kwargs["model"].named_parameters()}

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds eta lambda theta_0."""
        for name, parameter, fraction in decayed(kwargs["optimizer"]):
            parameter.add_(self.start[name], alpha=fraction)


class CautiousDecay(TrainerCallback):
    """Takes decay back where it goes against the update, and so keeps it where u and theta have one sign.

    Source: *Cautious Weight Decay* (2025): ``theta' = theta - eta (u + lambda [u theta >= 0] theta)``.
    """

    def __init__(self) -> None:
        self.before: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the weights of before the step."""
        self.before = [parameter.detach().clone() for _, parameter, _ in decayed(kwargs["optimizer"])]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds eta lambda theta where u theta < 0."""
        for theta, (_, parameter, fraction) in zip(self.before, decayed(kwargs["optimizer"]), strict=True):
            decay = fraction * theta
            moved = theta - (parameter + decay)
            parameter.add_(torch.where(moved * theta < 0.0, decay, 0.0))
        self.before = []
