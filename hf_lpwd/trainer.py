"""Layer-wise weight decay in `transformers.Trainer`: a mixin, and a trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_lpwd.config import LPWDConfig
from hf_lpwd.decay_groups import PWD_UNDER_DEEPSPEED
from hf_lpwd.factory import optimizer_from_plan
from hf_lpwd.layers import Layers
from hf_lpwd.load_weights import load_weights, weight_files
from hf_lpwd.lpwd_arguments import LPWDArguments
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.plan import LayerPlan, plan_layers
from hf_lpwd.schedules import Schedule
from hf_lpwd.trainer_log import QUIET, LayerLog
from hf_lpwd.trainer_optimizer import base_optimizer, regrouped, warn_if_nothing_decays


class LPWDTrainerMixin(Trainer):
    """Gives any `Trainer` subclass layer-wise weight decay: ``class Mine(LPWDTrainerMixin, Seq2SeqTrainer)``.

    The base optimizer is `args.optim`, or the class in `optimizer_cls_and_kwargs`; the decay is that of the
    arguments, which are `LPWDTrainingArguments` or have `LPWDArguments` in front of another class. With
    `log_layers`, each layer's rate, weight norm and ratio of gradient norm to weight norm go to the Trainer's
    logs at `logging_steps`; see `hf_lpwd.trainer_log.layer_values`.

    Args:
        *args: For the Trainer, as are `kwargs`.
        layer_map: Replaces `layer_map` of the arguments, which cannot be a `LayerMap`.
        layer_schedule: Replaces `layer_schedule` of the arguments, which cannot be a function.
        **kwargs: See `args`.

    Attributes:
        layer_plan: What happens to each parameter; None until `create_optimizer`, which training starts with.

    Raises:
        TypeError: The arguments have no decay settings, or the optimizer cannot be wrapped.
        ValueError: A setting would be ignored or cannot work; the message says why.

    Examples:
        >>> from dataclasses import dataclass
        >>> from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config
        >>> from transformers import T5ForConditionalGeneration
        >>> @dataclass
        ... class MyArguments(LPWDArguments, Seq2SeqTrainingArguments): ...
        >>> class MyTrainer(LPWDTrainerMixin, Seq2SeqTrainer): ...
        >>> config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=16)
        >>> args = MyArguments("out", weight_decay=0.05, optim="adafactor")
        >>> trainer = MyTrainer(T5ForConditionalGeneration(config), args)
        >>> trainer.create_optimizer()
        LayerwiseDecay(Adafactor, pwd, coupling lr: lr 5e-05, weight_decay 0 to 0.0333333, 3 groups)
        >>> trainer.layer_plan.layer_map.num_layers_by_stack
        {'encoder': 3, 'decoder': 3}
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        layer_map: Layers | None = None,
        layer_schedule: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        training_args = kwargs.get("args", next((a for a in args if isinstance(a, TrainingArguments)), None))
        if not isinstance(training_args, LPWDArguments):
            given = "none" if training_args is None else f"{type(training_args).__name__}"
            raise TypeError(
                f"{type(self).__name__} needs args with decay settings, such as "
                f"LPWDTrainingArguments(output_dir='out', weight_decay=0.05), but got {given}; LPWDArguments "
                "adds the settings to another class of arguments"
            )
        _refuse_ignored_methods(type(self))
        settings = {"layer_map": layer_map, "layer_schedule": layer_schedule}
        self._settings = {name: value for name, value in settings.items() if value is not None}
        super().__init__(*args, **kwargs)
        self.layer_plan: LayerPlan | None = None
        self._given_optimizer = self.optimizer
        if self.optimizer is not None and not isinstance(self.optimizer, LayerwiseDecay):
            raise ValueError(
                f"the {type(self.optimizer).__name__} passed in `optimizers` would ignore the decay settings "
                "of the arguments: pass its class in `optimizer_cls_and_kwargs`"
            )
        if self.is_deepspeed_enabled and self.args.decay_timing == "pwd":
            raise ValueError(PWD_UNDER_DEEPSPEED)
        self._layer_log = LayerLog()
        if self.args.log_layers:
            self.add_callback(self._layer_log)
        callbacks = self.callback_handler.callbacks
        callbacks[:] = [QUIET[type(c)]() if type(c) in QUIET else c for c in callbacks]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates `layer_plan` and from it the optimizer."""
        opt_model = self.model if model is None else model
        if self.optimizer is None or self.layer_plan is None:
            config = LPWDConfig.from_args(self.args, **self._settings)
            self.layer_plan = self._layer_log.plan = plan_layers(opt_model, config)
        if self.optimizer is None:
            warn_if_nothing_decays(self.layer_plan.config)
            self.optimizer = self._optimizer_from_plan(self.layer_plan, opt_model)
        elif self.optimizer is self._given_optimizer and (
            found := self.layer_plan.differences(opt_model, self.optimizer.param_groups)
        ):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(
                f"the optimizer passed in `optimizers` is not what the arguments say: {found[0]}{more}: give "
                "the arguments the same settings, or leave the optimizer to the trainer"
            )
        return self.optimizer

    def _optimizer_from_plan(self, plan: LayerPlan, model: nn.Module) -> LayerwiseDecay:
        if self.optimizer_cls_and_kwargs is None:
            found = self.get_optimizer_cls_and_kwargs(self.args, model)
        else:
            optimizer_cls, given = self.optimizer_cls_and_kwargs
            if "weight_decay" in given:
                raise ValueError("weight_decay is in optimizer_cls_and_kwargs: set it in the arguments")
            found = optimizer_cls, {"lr": self.args.learning_rate, **given}
        optimizer_cls, kwargs = base_optimizer(self.args, found)
        groups = kwargs.pop("optimizer_dict", None)
        if groups is not None:
            groups = regrouped(plan, model, groups, lr=self.args.learning_rate)
        return optimizer_from_plan(plan, model, optimizer_cls, param_groups=groups, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the Trainer does, with the per-layer values added to each training loss."""
        layers = self._layer_log.take() if "loss" in logs else {}
        super().log({**logs, **layers}, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        # Trainer would warn and go on with random weights, where names differ
        # (https://github.com/huggingface/transformers/issues/48805).
        given = next(iter((*args, *kwargs.values())), None)
        target: Any = self.model if given is None else given
        whole_model = (
            isinstance(target, PreTrainedModel)
            and not getattr(target, "_hf_peft_config_loaded", False)
            and not self.is_fsdp_enabled
            and weight_files(resume_from_checkpoint)
        )
        if whole_model:
            load_weights(target, resume_from_checkpoint)
        else:
            # sentence-transformers' takes no model.
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_best_model(self) -> None:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        best = self.state.best_model_checkpoint
        if isinstance(self.model, PreTrainedModel) and not sharded and weight_files(best):
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()


def _refuse_ignored_methods(trainer_cls: type) -> None:
    """Raises a ValueError if a class overrides what the mixin replaces."""
    mro = trainer_cls.__mro__[: trainer_cls.__mro__.index(Trainer)]
    behind = mro[mro.index(LPWDTrainerMixin) + 1 :]
    for cls in mro:
        if "get_decay_parameter_names" in vars(cls):
            raise ValueError(
                f"{cls.__name__}.get_decay_parameter_names would be ignored: use the arguments' "
                "no_decay_pattern, decay_by_pattern or decay_all"
            )
        if cls in behind and "create_optimizer" in vars(cls):
            raise ValueError(
                f"{cls.__name__}.create_optimizer would be ignored, as LPWDTrainerMixin comes before it: "
                "override it in front of the mixin, or give the optimizer's class in optimizer_cls_and_kwargs"
            )


class LPWDTrainer(LPWDTrainerMixin, Trainer):
    """`transformers.Trainer` with layer-wise weight decay; `LPWDTrainerMixin` has arguments and attributes.

    Examples:
        >>> from hf_lpwd import LPWDTrainingArguments
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
        >>> config = ViTConfig(**sizes, num_hidden_layers=2, image_size=4, patch_size=2)
        >>> model = ViTForImageClassification(config)
        >>> dataset = [{"pixel_values": torch.ones(3, 4, 4), "labels": 0}] * 8
        >>> on_cpu = {"use_cpu": True, "dataloader_pin_memory": False}
        >>> args = LPWDTrainingArguments("out", weight_decay=0.05, max_steps=1, **on_cpu)
        >>> trainer = LPWDTrainer(model, args, train_dataset=dataset)
        >>> trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        TrainOutput(global_step=1, ...)
        >>> trainer.layer_plan["classifier.weight"].rate
        0.05
    """
