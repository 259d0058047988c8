"""Layer-wise pre-weight decay for transformers and timm models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lpwd.factory import create_lpwd_optimizer, lpwd_optimizer_factory
    from hf_lpwd.layers import LayerMap, layer_index_map
    from hf_lpwd.optimizer import LayerwiseDecay
    from hf_lpwd.schedules import layer_rates
    from hf_lpwd.trainer import LPWDTrainer, LPWDTrainerMixin
    from hf_lpwd.training_args import LPWDTrainingArguments

__version__ = "0.1.0"

# Modules load when one of their names is first used: torch, timm and the Trainer take seconds each.
_MODULE_OF = {
    "LPWDTrainer": "trainer",
    "LPWDTrainerMixin": "trainer",
    "LPWDTrainingArguments": "training_args",
    "LayerMap": "layers",
    "LayerwiseDecay": "optimizer",
    "create_lpwd_optimizer": "factory",
    "layer_index_map": "layers",
    "layer_rates": "schedules",
    "lpwd_optimizer_factory": "factory",
}

__all__ = [
    "LPWDTrainer",
    "LPWDTrainerMixin",
    "LPWDTrainingArguments",
    "LayerMap",
    "LayerwiseDecay",
    "create_lpwd_optimizer",
    "layer_index_map",
    "layer_rates",
    "lpwd_optimizer_factory",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
