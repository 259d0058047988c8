"""Peers that are AdamW's decay, changed after the step: no kept library has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_lpwd.study.callbacks import decayed


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
        for name, parameter, share in decayed(kwargs["optimizer"]):
            parameter.add_(self.start[name], alpha=share)


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
        for theta, (_, parameter, share) in zip(self.before, decayed(kwargs["optimizer"]), strict=True):
            decay = share * theta
            moved = theta - (parameter + decay)
            parameter.add_(torch.where(moved * theta < 0.0, decay, 0.0))
        self.before = []
