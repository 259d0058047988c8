"""Layer-wise pre-weight decay for transformers and timm models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lpwd.config import LPWDConfig
    from hf_lpwd.factory import create_lpwd_optimizer, layer_param_groups, optimizer_from_plan
    from hf_lpwd.layers import LayerMap, layer_index_map
    from hf_lpwd.lpwd_arguments import LPWDArguments
    from hf_lpwd.measure import DecayMeasurement, assert_decays, measure_decay
    from hf_lpwd.optimizer import LayerwiseDecay
    from hf_lpwd.plan import LayerPlan, explain, plan_layers
    from hf_lpwd.schedules import layer_rates
    from hf_lpwd.stock_state import load_stock_state
    from hf_lpwd.trainer import LPWDTrainer, LPWDTrainerMixin
    from hf_lpwd.trainer_log import DecayReport
    from hf_lpwd.trainer_optimizer import lpwd_optimizer_factory
    from hf_lpwd.training_args import LPWDTrainingArguments

__version__ = "0.1.0"

# Modules load when one of their names is first used: torch, timm and the Trainer take seconds each.
_MODULE_OF = {
    "DecayMeasurement": "measure",
    "DecayReport": "trainer_log",
    "LPWDArguments": "lpwd_arguments",
    "LPWDConfig": "config",
    "LPWDTrainer": "trainer",
    "LPWDTrainerMixin": "trainer",
    "LPWDTrainingArguments": "training_args",
    "LayerMap": "layers",
    "LayerPlan": "plan",
    "LayerwiseDecay": "optimizer",
    "assert_decays": "measure",
    "create_lpwd_optimizer": "factory",
    "explain": "plan",
    "layer_index_map": "layers",
    "layer_param_groups": "factory",
    "layer_rates": "schedules",
    "load_stock_state": "stock_state",
    "lpwd_optimizer_factory": "trainer_optimizer",
    "measure_decay": "measure",
    "optimizer_from_plan": "factory",
    "plan_layers": "plan",
}

__all__ = [
    "DecayMeasurement",
    "DecayReport",
    "LPWDArguments",
    "LPWDConfig",
    "LPWDTrainer",
    "LPWDTrainerMixin",
    "LPWDTrainingArguments",
    "LayerMap",
    "LayerPlan",
    "LayerwiseDecay",
    "assert_decays",
    "create_lpwd_optimizer",
    "explain",
    "layer_index_map",
    "layer_param_groups",
    "layer_rates",
    "load_stock_state",
    "lpwd_optimizer_factory",
    "measure_decay",
    "optimizer_from_plan",
    "plan_layers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
