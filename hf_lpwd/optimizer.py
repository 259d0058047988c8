"""`LayerwiseDecay`: when weight decay is applied, around any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_lpwd.base_optimizer import (
    allocates_state,
    check_base,
    check_sparse_gradients,
    division_of_work,
    joined_groups,
)
from hf_lpwd.decay_groups import check_group, check_own_weights, check_same_run, completed, shrinkage
from hf_lpwd.low_precision import by_precision, warn_of_vanishing_rates
from hf_lpwd.plan import LayerPlan


class LayerwiseDecay(Optimizer):
    r"""Any torch optimizer, with weight decay applied at a chosen moment of the step.

    With theta the weights, g(theta) the gradient, u(g) the base optimizer's update without its learning
    rate eta, and lambda the `weight_decay` of the parameter's group:

    | timing | step | gradient at |
    |---|---|---|
    | ``l2`` | theta' = theta - eta u(g(theta) + lambda theta) | theta |
    | ``wd`` | theta' = theta - eta u(g(theta)) - eta lambda theta | theta |
    | ``rwd`` | theta' = (1 - eta lambda) (theta - eta u(g(theta))) | theta |
    | ``pwd`` | theta^ = (1 - eta lambda) theta, then theta' = theta^ - eta u(g(theta^)) | theta^ |

    eta is the group's `lr`; ``coupling="independent"`` puts lambda in the place of eta * lambda.

    ``pwd`` decays in `train()`, which has to be called before each forward pass; `transformers.Trainer`
    does so by itself. Calling it again before `step()` does nothing, so gradient accumulation decays once,
    and so does a step that a gradient scaler skips and repeats (the weights stay decayed until it succeeds).
    Between `step()` and the next `train()` the weights are the undecayed theta', which is what is to be
    evaluated and saved. A state dict made between
    `train()` and `step()` says so, and goes with the decayed weights of that moment. A parameter without a
    gradient is left alone by all timings but ``pwd``, which cannot know.

    Where the base optimizer is one of torch's Adams, ``wd`` and ``rwd`` run inside its own (fused) pass:
    ``rwd`` is ``wd`` with learning rate ``eta (1 - eta lambda)`` and rate ``lambda / (1 - eta lambda)``.
    Elsewhere they are one multiplication before or after it; only ``wd`` around an optimizer whose update may
    depend on the weights (anything but torch's own) needs a copy of the decayed weights during the step.

    In bfloat16 and float16 weights the decay of one step mostly rounds to nothing. There it is added up, and
    applied when it amounts to about 2^-6 or 2^-9 of the weight, by all timings but ``l2``; see
    `hf_lpwd.low_precision`. A warning names the rates.

    Args:
        params: Parameters, named parameters or parameter groups, as for any torch optimizer. A group may set
            `weight_decay`.
        optimizer_cls: Class of the base optimizer.
        timing: ``"l2"``, ``"wd"``, ``"rwd"`` or ``"pwd"``.
        coupling: ``"lr"`` as in `torch.optim.AdamW`, or ``"independent"``.
        weight_decay: lambda of groups that do not set their own.
        **optimizer_kwargs: For `optimizer_cls`: `lr`, `betas` and so on.

    Attributes:
        base: The base optimizer. Its `param_groups` and `state` are this optimizer's.
        plan: The `LayerPlan` that it was made from, or None.

    Raises:
        ValueError: An unknown timing or coupling, ``l2`` with independent coupling, a rate that is negative
            or not finite, a shrinkage (eta * lambda, or lambda if independent) that is not below 1, or a
            `weight_decay` that no group would use.
        TypeError: The base optimizer cannot be wrapped; the message says why.

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
        timing: str = "pwd",
        coupling: str = "lr",
        weight_decay: float = 0.0,
        **optimizer_kwargs: Any,
    ) -> None:
        check_base(optimizer_cls, optimizer_kwargs)
        if isinstance(params, (Tensor, dict)):
            raise TypeError(f"params must be an iterable of tensors or groups, not a {type(params).__name__}")
        members = list(params)
        if not members:
            raise ValueError("the optimizer got an empty parameter list")
        given = members if isinstance(members[0], dict) else [{"params": members}]
        decay_defaults = {"weight_decay": weight_decay, "decay_timing": timing, "decay_coupling": coupling}
        groups = [completed(group, decay_defaults) for group in given]
        if weight_decay and all("weight_decay" in group for group in given):
            own = sorted({group["weight_decay"] for group in groups})
            if weight_decay not in own:
                raise ValueError(
                    f"weight_decay={weight_decay} would be ignored: every parameter group sets its own ("
                    f"{', '.join(map(str, own))}). In a Trainer use lpwd_optimizer_factory or LPWDTrainer"
                )
        base = optimizer_cls(groups, **optimizer_kwargs)
        for group in base.param_groups:
            check_group(group)
        # Not `super().__init__`, which would make groups and a state beside the base optimizer's.
        self.__setstate__({"base": base, "defaults": {**base.defaults, **decay_defaults}})
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
            groups = self.plan.regroup(param_group, lr=self.defaults["lr"])
        for group in [completed(group, self.defaults) for group in groups]:
            check_group(group)
            self.base.add_param_group(group)
            warn_of_vanishing_rates(self.param_groups[-1:])

    @torch.no_grad()
    def train(self) -> None:
        """Call before each forward pass: under ``pwd``, decays once for the step that follows.

        Raises:
            ValueError: A group's shrinkage is not in [0, 1).
            RuntimeError: Timing ``pwd`` under DeepSpeed, where the optimizer holds copies of the weights.
        """
        waiting = [g for g in self.param_groups if g["decay_timing"] == "pwd" and not g["decay_applied"]]
        for group, share in [(group, shrinkage(group)) for group in waiting]:
            check_own_weights(group)
            trained = [p for p in group["params"] if p.requires_grad]
            for part, due in by_precision(trained, group, share):
                torch._foreach_mul_(part, 1.0 - due)
            group["decay_applied"] = True

    def eval(self) -> None:
        """Call before an evaluation. Changes nothing: after `step()` the weights are already undecayed."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step.

        Args:
            closure: Computes the loss and its gradients; called once, under ``pwd`` at the decayed weights.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: Timing ``pwd``, and `train()` was not called since the last step.
            ValueError: A group's shrinkage is not in [0, 1).
            TypeError: A gradient is sparse, and the base optimizer or timing ``l2`` does not take it.
        """
        loss = None
        if closure is not None:
            self.train()
            with torch.enable_grad():
                loss = closure()
        check_sparse_gradients(self.base)
        groups = self.param_groups
        allocating = allocates_state(groups)
        shares = [0.0 if allocating else shrinkage(group) for group in groups]
        pending = [g for g in groups if g["decay_timing"] == "pwd" and not g["decay_applied"]]
        if pending and not allocating:
            raise RuntimeError(
                "timing 'pwd' decays before the forward pass, but optimizer.train() was not called since the "
                "last step: call it before each forward pass, or use timing 'rwd', which needs no call"
            )
        self._decaying_step(shares)
        if not allocating:
            for group in groups:
                group["decay_applied"] = False
        return loss

    def _decaying_step(self, shares: list[Any]) -> None:
        originals: list[tuple[dict[str, Any], dict[str, Any]]] = []
        gradients: list[tuple[Tensor, Tensor]] = []
        after: list[tuple[list[Tensor], Any]] = []
        around: list[tuple[list[Tensor], list[Tensor]]] = []
        groups = self.param_groups
        try:
            for group, share in zip(groups, shares, strict=True):
                moment, seen_by_base = division_of_work(self.base, group, share)
                trained = [p for p in group["params"] if p.grad is not None] if moment else []
                if moment == "gradient":
                    gradients += _with_penalty(trained, group)
                elif moment:
                    for part, due in by_precision(trained, group, share):
                        if moment == "before":
                            torch._foreach_mul_(part, 1.0 - due)
                        elif moment == "after":
                            after.append((part, due))
                        else:
                            around.append((part, list(torch._foreach_mul(part, due))))
                originals.append((group, {key: group[key] for key in seen_by_base}))
                group.update(seen_by_base)
            self.param_groups = joined_groups(self.base)
            self.base.step()
        finally:
            self.param_groups = groups
            for group, original in originals:
                group.update(original)
            for parameter, gradient in gradients:
                parameter.grad = gradient
        for part, due in after:
            torch._foreach_mul_(part, 1.0 - due)
        for part, decay in around:
            torch._foreach_sub_(part, decay)

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
        check_same_run(self.param_groups, state_dict["param_groups"])
        self.base.load_state_dict(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


def _with_penalty(params: list[Tensor], group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Adds lambda * theta to the gradients of parameters; returns the parameters with what they had."""
    gradients = [p.grad for p in params if p.grad is not None]
    rate = -group["weight_decay"] if group.get("maximize") else group["weight_decay"]
    for parameter, penalized in zip(params, torch._foreach_add(gradients, params, alpha=rate), strict=True):
        parameter.grad = penalized
    return list(zip(params, gradients, strict=True))
