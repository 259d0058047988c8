"""Loads a checkpoint of a stock optimizer, with its moments and step counts, into a `LayerwiseDecay`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.utils import logging

from hf_lpwd.optimizer import LayerwiseDecay

logger = logging.get_logger(__name__)


def load_stock_state(optimizer: LayerwiseDecay, state_dict: dict[str, Any], model: nn.Module) -> str:
    """Loads the state of an optimizer that this package did not make, such as the moments of AdamW.

    Learning rates, weight decay and all other settings stay those of `optimizer`. With a Trainer, between
    `create_optimizer` and `train`: ::

        saved = torch.load("checkpoint-500/optimizer.pt", weights_only=True)
        load_stock_state(trainer.optimizer, saved, trainer.model)

    Args:
        optimizer: From `create_lpwd_optimizer` or `LPWDTrainer.create_optimizer`, around the same class.
        state_dict: What the other optimizer's `state_dict` returned. Its groups have `param_names`, or are
            one group of all trained parameters, or the two groups of a stock `Trainer`.
        model: The model of `optimizer`, with the same parameters trained as then.

    Returns:
        What was loaded, as a sentence, which is logged too.

    Raises:
        ValueError: The state has other parameters, or no names for them. Nothing is changed.

    Examples:
        >>> import torch
        >>> from hf_lpwd import create_lpwd_optimizer
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> stock = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(4)).sum().backward()
        >>> stock.step()
        >>> optimizer = create_lpwd_optimizer(model, lr=1e-4, weight_decay=0.05)
        >>> load_stock_state(optimizer, stock.state_dict(), model).partition(";")[0]
        'loaded exp_avg, exp_avg_sq, step of 6 of 6 parameters'
        >>> torch.equal(optimizer.state[model[0].weight]["exp_avg"], stock.state[model[0].weight]["exp_avg"])
        True
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    positions = [position for group in state_dict["param_groups"] for position in group["params"]]
    names = _names(state_dict["param_groups"], model)
    saved = {name: state_dict["state"].get(at, {}) for name, at in zip(names, positions, strict=True)}
    own = optimizer.state_dict()
    names = [name for group in own["param_groups"] for name in group["param_names"]]
    if odd := min(saved.keys() ^ set(names), default=None):
        raise ValueError(
            f"the state dict has other parameters than this optimizer: {odd} is in one of them only"
        )
    for name in names:
        for key, value in saved[name].items():
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameters[name].shape:
                raise ValueError(
                    f"the saved {key} of {name} has shape {tuple(value.shape)}, but the parameter has "
                    f"{tuple(parameters[name].shape)}: the state dict is of another model"
                )
    positions = [position for group in own["param_groups"] for position in group["params"]]
    taken = {position: saved[name] for position, name in zip(positions, names, strict=True) if saved[name]}
    optimizer.load_state_dict({**own, "state": taken})
    keys = sorted({key for state in taken.values() for key in state})
    text = (
        f"loaded {', '.join(keys) or 'nothing'} of {len(taken)} of {len(names)} parameters; learning rates "
        "and weight decay are those of this run"
    )
    logger.info(text)
    return text


def _names(groups: list[dict[str, Any]], model: nn.Module) -> list[str]:
    """The saved parameters' names, in the order of the saved groups."""
    if all(len(group.get("param_names", ())) == len(group["params"]) for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    else:
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        if len(groups) == 2:
            from transformers import Trainer

            # The method reads nothing of a Trainer.
            decayed = set(Trainer.get_decay_parameter_names(None, model))
            trained.sort(key=lambda name: name not in decayed)
            sizes = [len(group["params"]) for group in groups]
            expected = [
                sum(name in decayed for name in trained),
                sum(name not in decayed for name in trained),
            ]
            if sizes != expected:
                raise ValueError(
                    f"the state dict has groups of {sizes} parameters without param_names, but the Trainer's "
                    f"have {expected}: which is which?"
                )
        names = trained
        if len(groups) > 2:
            raise ValueError(f"the state dict has {len(groups)} groups without param_names: which is which?")
    count = sum(len(group["params"]) for group in groups)
    if len(names) != count:
        raise ValueError(f"the state dict has {count} parameters, but the model trains {len(names)}")
    return names
