"""What peers change beyond their flags: rates by layer, the optimizer, or what follows its step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from hf_lpwd.explain import explain
from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.schedules import parse_schedule
from hf_lpwd.study.decay_callbacks import CautiousDecay, DecayTowardsStart
from hf_lpwd.vision.arguments import ImageTrainingArguments
from hf_lpwd.vision.prepare import Run

#: The factor from layer to layer of BEiT-like fine-tuning, and timm's default.
LAYER_DECAY = 0.75


def peer_callbacks(peer: str | None) -> list[TrainerCallback]:
    """Returns the callbacks that a peer needs in training."""
    if peer == "l2_sp":
        return [DecayTowardsStart()]
    return [CautiousDecay()] if peer == "cautious_decay" else []


def apply_peer(peer: str | None, run: Run, args: ImageTrainingArguments) -> tuple[Run, LayerwiseDecay | None]:
    """Changes what a peer changes beyond its flags.

    Args:
        peer: Key of `PEERS`, or None.
        run: From `finetune.prepare`, with the peer's flags.
        args: Its training arguments; their decay settings are changed in place.

    Returns:
        The run with the rates as they will be, and the optimizer, if it is not what the trainer makes itself.

    Raises:
        ValueError: The model has several stacks of layers, for which a list of rates does not fit.
    """
    if peer == "layer_wise_lr":
        return run, _layer_wise_lr(run, args)
    if peer == "cautious_adamw":
        return run, _cautious_adamw(run, args)
    rates = [row.rate for row in run.explanation.layers]
    if peer == "linear_budget":
        decayed = [row.decayed for row in run.explanation.layers]
        args.weight_decay = float(np.average(rates, weights=decayed))
        args.layer_schedule = "uniform"
    elif peer == "shuffled_rates":
        args.layer_schedule = _as_text(np.random.default_rng(args.seed).permutation(rates).tolist())
    elif peer == "head_only":
        args.layer_schedule = _as_text([0.0] * (len(rates) - 1) + rates[-1:])
    else:
        return run, None
    explanation = explain(
        run.model,
        weight_decay=args.weight_decay,
        schedule=parse_schedule(args.layer_schedule),
        decay_all=args.decay_all,
        no_decay=args.no_decay_pattern,
    )
    return replace(run, explanation=explanation), None


def _as_text(rates: list[float]) -> str:
    return ",".join(map(repr, rates))


def _layer_wise_lr(run: Run, args: ImageTrainingArguments) -> LayerwiseDecay:
    from timm.optim import param_groups_layer_decay

    parameters = run.explanation.parameters
    # What timm asks of a model: its parameters, and the layer of each.
    layered = SimpleNamespace(
        named_parameters=run.model.named_parameters,
        group_matcher=lambda coarse: lambda name: parameters[name]["layer"],
    )
    groups = param_groups_layer_decay(
        layered,
        weight_decay=args.weight_decay,
        no_weight_decay_list=[name for name, about in parameters.items() if about["not_decayed"]],
        weight_decay_exclude_1d=False,
        layer_decay=LAYER_DECAY,
    )
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    for group in groups:
        group["param_names"] = [names[id(parameter)] for parameter in group["params"]]
        group["lr"] = args.learning_rate * group.pop("lr_scale")
    return LayerwiseDecay(groups, torch.optim.AdamW, timing="wd", **_adam(args), fused=True)


def _cautious_adamw(run: Run, args: ImageTrainingArguments) -> LayerwiseDecay:
    from timm.optim import AdamWLegacy

    return create_lpwd_optimizer(
        run.model,
        AdamWLegacy,
        weight_decay=args.weight_decay,
        timing="wd",
        schedule="uniform",
        decay_all=args.decay_all,
        no_decay=args.no_decay_pattern,
        caution=True,
        **_adam(args),
    )


def _adam(args: ImageTrainingArguments) -> dict[str, Any]:
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
