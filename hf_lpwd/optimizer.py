"""`LayerwiseDecay`: when weight decay is applied, around any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_lpwd import timings
from hf_lpwd.base_optimizer import allocates_state, check_base, check_group, own_decay, step_base
from hf_lpwd.config import Coupling, Timing
from hf_lpwd.decay_groups import (
    PWD_UNDER_DEEPSPEED,
    completed,
    decay_fraction,
    groups_to_load,
)
from hf_lpwd.low_precision import by_precision, warn_of_vanishing_rates
from hf_lpwd.messages import value_range
from hf_lpwd.plan import LayerPlan
from hf_lpwd.stale_gradients import StaleGradients

# All optimizers that exist, to notice two that decay the same weights before a step.
_OPTIMIZERS: WeakSet[LayerwiseDecay] = WeakSet()


class LayerwiseDecay(Optimizer):
    r"""Any torch optimizer, with a choice of when in the step weight decay is applied.

    With theta the weights, g(theta) the gradient, u(g) the base optimizer's update without its learning
    rate eta, and lambda the `weight_decay` of the parameter's group:

    | timing | step | gradient at |
    |---|---|---|
    | ``l2`` | theta' = theta - eta u(g(theta) + lambda theta) | theta |
    | ``wd`` | theta' = theta - eta u(g(theta)) - eta lambda theta | theta |
    | ``rwd`` | theta' = (1 - eta lambda) (theta - eta u(g(theta))) | theta |
    | ``pwd`` | theta^ = (1 - eta lambda) theta, then theta' = theta^ - eta u(g(theta^)) | theta^ |

    eta is the group's `lr`; ``decay_coupling="independent"`` puts lambda in the place of eta * lambda.

    ``pwd`` decays in `train()`, which must be called before each forward pass; `transformers.Trainer` does
    that. Further calls before `step()` do nothing, so weights decay once under gradient accumulation, and
    once for a step that a gradient scaler skips and repeats. Between `step()` and the next `train()` the
    weights are the undecayed theta', to be evaluated and saved. A step that would use gradients from before
    the decay raises. ``pwd`` alone decays parameters that will have no gradient, which it cannot know.

    If the base optimizer is one of torch's Adams, ``wd`` and ``rwd`` run inside its own (fused) pass:
    ``rwd`` is ``wd`` with learning rate ``eta (1 - eta lambda)`` and rate ``lambda / (1 - eta lambda)``.
    Otherwise they are one multiplication before or after it; see `hf_lpwd.timings`. In bfloat16 and float16
    weights the decay of one step mostly rounds to nothing. There it is added up, and applied when it amounts
    to about 2^-6 or 2^-9 of the weight, by all timings but ``l2``; see `hf_lpwd.low_precision`.

    Args:
        params: Parameters, named parameters or parameter groups, as for any torch optimizer.
        optimizer_cls: Class of the base optimizer.
        decay_timing: ``"l2"``, ``"wd"``, ``"rwd"`` or ``"pwd"``.
        decay_coupling: ``"lr"`` as in `torch.optim.AdamW`, or ``"independent"``.
        weight_decay: lambda of groups that do not set their own.
        **optimizer_kwargs: For `optimizer_cls`: `lr`, `betas` and so on.

    Attributes:
        base: The base optimizer. Its `param_groups` and `state` are this optimizer's.
        plan: The `LayerPlan` that it was made from, or None.

    Raises:
        ValueError: A setting has no such value, the decay of one step is not in [0, 1), no group would use
            `weight_decay`, or `lr` is not the step size of the base optimizer (Prodigy, D-Adaptation).
        TypeError: The base optimizer cannot be wrapped; the message says why.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = LayerwiseDecay([weight], torch.optim.SGD, weight_decay=0.5, lr=0.1)
        >>> optimizer.train()
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> weight.data  # (1 - 0.1 * 0.5) * 1 - 0.1 * 1
        tensor([0.8500, 0.8500])

    Source: *Layer-wise Pre-weight Decay* (OpenReview 0GZ1Bq4Tfr) for ``rwd`` and ``pwd``; Loshchilov and
    Hutter, *Decoupled Weight Decay Regularization* (2019) for ``wd``.
    """

    base: Optimizer
    plan: LayerPlan | None = None

    def __init__(
        self,
        params: Iterable[Any],
        optimizer_cls: type[Optimizer] = torch.optim.AdamW,
        *,
        decay_timing: Timing = "pwd",
        decay_coupling: Coupling = "lr",
        weight_decay: float = 0.0,
        **optimizer_kwargs: Any,
    ) -> None:
        check_base(optimizer_cls, optimizer_kwargs)
        if isinstance(params, (Tensor, dict, str, nn.Module, Optimizer)):
            raise TypeError(
                f"params must be an iterable of tensors or groups, not a {type(params).__name__}: give "
                "model.parameters(), or the model to create_lpwd_optimizer"
            )
        members = list(params)
        if not members:
            raise ValueError("the optimizer got an empty parameter list")
        decay = {"decay_timing": decay_timing, "decay_coupling": decay_coupling, "weight_decay": weight_decay}
        given = members if isinstance(members[0], dict) else [{"params": members}]
        groups = [completed(group, decay) for group in given]
        rates = sorted({group["weight_decay"] for group in groups})
        if weight_decay and weight_decay not in rates:
            raise ValueError(
                f"weight_decay={weight_decay} would be ignored: every parameter group sets its own ("
                f"{', '.join(map(str, rates))}). In a Trainer use lpwd_optimizer_factory or LPWDTrainer"
            )
        base = optimizer_cls(groups, **optimizer_kwargs)
        for group in base.param_groups:
            check_group(optimizer_cls, group)
        # Not `super().__init__`, which would make a second set of groups and states.
        self.__setstate__({"base": base, "defaults": {**base.defaults, **decay}})
        warn_of_vanishing_rates(base.param_groups)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups; `weight_decay` in each is lambda."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "defaults": self.defaults, "plan": self.plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stale = StaleGradients()
        _OPTIMIZERS.add(self)

    def __repr__(self) -> str:
        groups = self.param_groups
        given = ([g[key] for g in groups if g.get(key) is not None] for key in ("lr", "weight_decay"))
        lrs, rates = (value_range(map(float, values)) or "None" for values in given)
        return (
            f"{type(self).__name__}({type(self.base).__name__}, {groups[0]['decay_timing']}, coupling "
            f"{groups[0]['decay_coupling']}: lr {lrs}, weight_decay {rates}, {len(groups)} groups)"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as on any torch optimizer.

        If it has no `weight_decay` and there is a `plan`, the parameters get their layers' weight decay and
        learning rate, in a group for each; they need their names:
        ``{"params": [(name, p) for name, p in model.named_parameters() if ...]}``. Without a plan,
        `weight_decay` defaults to the constructor's.

        Raises:
            ValueError: The plan does not know a parameter, or a value is out of its range.
        """
        groups = [param_group]
        if self.plan is not None and "weight_decay" not in param_group:
            groups = self.plan.added_groups(param_group, lr=self.defaults["lr"])
        before = len(self.param_groups)
        try:
            for group in [completed(group, self.defaults) for group in groups]:
                check_group(type(self.base), group)
                self.base.add_param_group(group)
        except Exception:
            del self.param_groups[before:]
            raise
        warn_of_vanishing_rates(self.param_groups[before:])

    def train(self) -> None:
        """Call before each forward pass: under ``pwd``, decays once for the step that follows.

        Raises:
            ValueError: The decay of one step is not in [0, 1).
            RuntimeError: DeepSpeed has put copies of the weights into the groups.
        """
        decayed = self.decay_waiting()
        for other in list(_OPTIMIZERS):
            # Not compared with `self`, which may be a wrapper that has this object's attributes, as
            # Lightning's and Fabric's.
            if other.base is not self.base:
                other._stale.decayed_elsewhere(decayed, other.param_groups)

    @torch.no_grad()
    def decay_waiting(self) -> list[Tensor]:
        """As `train`, unnoticed by other optimizers; returns the parameters that were decayed."""
        waiting = [g for g in self.param_groups if g["decay_timing"] == "pwd" and not g["decay_applied"]]
        decayed: list[Tensor] = []
        for group, fraction in [(group, decay_fraction(group)) for group in waiting]:
            # DeepSpeed's flattened copies of the weights.
            if len(group.get("param_names", group["params"])) != len(group["params"]):
                raise RuntimeError(PWD_UNDER_DEEPSPEED)
            group["decay_applied"] = True
            if group["weight_decay"] == 0.0:
                continue
            trained = [p for p in group["params"] if p.requires_grad]
            for weights, s in by_precision(trained, group, fraction):
                timings.pwd(weights, s)
            self._stale.remember(trained)
            decayed += trained
        return decayed

    def eval(self) -> None:
        """Call before an evaluation. Changes nothing: after `step()` the weights are already undecayed."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Removes the gradients, as any torch optimizer does."""
        self._stale.removed()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step.

        Args:
            closure: Computes the loss, which is returned, and its gradients; called once, after `train()`.

        Raises:
            RuntimeError: Timing ``pwd``, and `train()` was not called, or after the gradients were computed,
                or another `LayerwiseDecay` has decayed the weights since.
            ValueError: The decay of one step is not in [0, 1).
            TypeError: Timing ``l2``, and a gradient is sparse, or the base optimizer differentiates it.
        """
        loss = None
        if closure is not None:
            self.train()
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        if allocates_state(groups):
            step_base(self.base, [{"weight_decay": 0.0}] * len(groups))
            return loss
        if any(group["decay_timing"] == "pwd" and not group["decay_applied"] for group in groups):
            raise RuntimeError(
                "decay_timing 'pwd' decays before the forward pass, but optimizer.train() was not called "
                "since the last step: call it before each forward pass, or use decay_timing 'rwd', which "
                "needs no call"
            )
        self._stale.check(groups)
        self._step_with_decay()
        if any(group["decay_applied"] for group in groups):
            self._stale.used(groups)
        for group in groups:
            group["decay_applied"] = False
        return loss

    def _step_with_decay(self) -> None:
        seen_by_base: list[dict[str, Any]] = []
        after_update: list[timings.AfterUpdate] = []
        fractions = [decay_fraction(group) for group in self.param_groups]
        with ExitStack() as gradients:
            for group, fraction in zip(self.param_groups, fractions, strict=True):
                own = own_decay(self.base, group, fraction)
                seen_by_base.append({"weight_decay": 0.0} if own is None else own)
                trained = [] if own is not None else [p for p in group["params"] if p.grad is not None]
                if trained and group["decay_timing"] == "l2":
                    gradients.callback(timings.l2(trained, group, self.base))
                    continue
                decay = timings.rwd if group["decay_timing"] == "rwd" else timings.wd
                for weights, s in by_precision(trained, group, fraction):
                    after_update.append(decay(weights, s, self.base))
            step_base(self.base, seen_by_base)
        for finish in after_update:
            finish()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict; decay settings and parameter names stand in its groups."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self.base.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = post_hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned.

        Raises:
            ValueError: It was saved for other parameters or other decay settings; nothing is changed.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        state_dict["param_groups"] = groups_to_load(self.param_groups, state_dict["param_groups"])
        self.base.load_state_dict(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
