"""Layer-wise weight decay in `transformers.Trainer`: a mixin, and a trainer made with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import CONFIG_NAME

from hf_lpwd.base_optimizer import has_fused_kernel
from hf_lpwd.decay_groups import PWD_UNDER_DEEPSPEED
from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.layer_log import QUIET, LayerLog
from hf_lpwd.layers import LayerMap, layer_index_map
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.schedules import parse_schedule
from hf_lpwd.training_args import LPWDTrainingArguments

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class LPWDTrainerMixin(_Base):
    """Gives any `Trainer` subclass layer-wise weight decay: ``class Mine(LPWDTrainerMixin, Seq2SeqTrainer)``.

    The base optimizer is `args.optim`, or the class in `optimizer_cls_and_kwargs`; the decay is that of
    `LPWDTrainingArguments`. At `logging_steps` each layer's rate, weight norm and ratio of gradient norm to
    weight norm go to the Trainer's logs; see `hf_lpwd.layer_log.layer_values`.

    Attributes:
        layer_map: The layer index of each parameter, from the start of training on.

    Raises:
        TypeError: The arguments are no `LPWDTrainingArguments`, or the optimizer cannot be wrapped.
        ValueError: A setting would be ignored or cannot work; the message says why.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer_map: LayerMap | None = None
        self._layer_log = LayerLog()
        if not isinstance(self.args, LPWDTrainingArguments):
            raise TypeError(f"args must be LPWDTrainingArguments, not {type(self.args).__name__}")
        if self.optimizer is not None and not isinstance(self.optimizer, LayerwiseDecay):
            raise ValueError(
                f"the {type(self.optimizer).__name__} passed in `optimizers` would ignore the decay settings "
                "of the arguments: pass its class in `optimizer_cls_and_kwargs`"
            )
        if self.is_deepspeed_enabled and self.args.decay_timing == "pwd":
            raise ValueError(PWD_UNDER_DEEPSPEED)
        self.add_callback(self._layer_log)
        callbacks = self.callback_handler.callbacks
        callbacks[:] = [QUIET[type(c)]() if type(c) in QUIET else c for c in callbacks]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the `LayerwiseDecay` optimizer, as `Trainer.create_optimizer` does its own."""
        opt_model = self.model if model is None else model
        self.layer_map = self._layer_log.layer_map = layer_index_map(opt_model)
        if self.optimizer is None:
            args: LPWDTrainingArguments = self.args
            optimizer_cls, optimizer_kwargs = self._base_optimizer(opt_model)
            self.optimizer = create_lpwd_optimizer(
                opt_model,
                optimizer_cls,
                weight_decay=args.weight_decay,
                timing=args.decay_timing,
                schedule=parse_schedule(args.layer_schedule),
                coupling=args.decay_coupling,
                match_budget=args.match_decay_budget,
                decay_all=args.decay_all,
                no_decay=args.no_decay_pattern,
                layer_map=self.layer_map,
                **optimizer_kwargs,
            )
        return self.optimizer

    def _base_optimizer(self, model: nn.Module) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        if self.optimizer_cls_and_kwargs is not None:
            optimizer_cls, given = self.optimizer_cls_and_kwargs
            kwargs = {"lr": self.args.learning_rate, **given}
            if "weight_decay" in kwargs:
                raise ValueError("weight_decay stands in optimizer_cls_and_kwargs: set it in the arguments")
        else:
            optimizer_cls, given = self.get_optimizer_cls_and_kwargs(self.args, model)
            kwargs = dict(given)
            # Some of Trainer's handlers pass args.weight_decay on, which the groups carry already.
            own_rate = kwargs.pop("weight_decay", self.args.weight_decay)
            if own_rate != self.args.weight_decay:
                raise ValueError(f"weight_decay={own_rate} stands in optim_args: use --weight_decay")
        if kwargs.keys() & {"params", "model", "optimizer_dict"}:
            raise ValueError(
                f"optim {str(self.args.optim)!r} makes its own parameter groups, which leaves no place for "
                "layer-wise rates: use an optimizer that takes groups, such as adamw_torch_fused"
            )
        # The kernel is the one that Trainer would use: adamw_torch and sgd are not fused.
        if has_fused_kernel(optimizer_cls, ()):
            kwargs.setdefault("fused", None)
        return optimizer_cls, kwargs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the Trainer does, with the per-layer values beside each training loss."""
        if "loss" in logs:
            logs.update(self._layer_log.take())
        super().log(logs, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # `save_pretrained` writes some models, ViT among them, with the names of their Hub checkpoints.
        # Only `from_pretrained` reads these: Trainer would warn and go on with random weights
        # (https://github.com/huggingface/transformers/issues/48805).
        target: Any = self.model if model is None else model
        whole_model = (
            isinstance(target, PreTrainedModel)
            and not getattr(target, "_hf_peft_config_loaded", False)
            and not self.is_fsdp_enabled
            and os.path.isfile(os.path.join(resume_from_checkpoint, CONFIG_NAME))
        )
        if not whole_model:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved, report = type(target).from_pretrained(
            resume_from_checkpoint,
            config=target.config,
            dtype=target.dtype,
            local_files_only=True,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(
                f"the checkpoint {resume_from_checkpoint} lacks weights of this model: "
                f"{', '.join(sorted(report['missing_keys'])[:3])} and perhaps more"
            )
        target.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if (
            isinstance(self.model, PreTrainedModel)
            and not self.is_fsdp_enabled
            and not self.is_deepspeed_enabled
        ):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


class LPWDTrainer(LPWDTrainerMixin, Trainer):
    """`transformers.Trainer` with layer-wise weight decay; see `LPWDTrainerMixin`."""
