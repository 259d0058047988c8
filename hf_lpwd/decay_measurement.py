"""`measure_decay`: what an optimizer really decays, layer by layer, and in words what is odd about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_lpwd.config import LPWDConfig
from hf_lpwd.measure import MeasuredDecay, measure_parameters
from hf_lpwd.messages import value_range
from hf_lpwd.plan import LayerPlan, plan_layers
from hf_lpwd.plan_table import aligned

_SHOWN = 3


@dataclass(frozen=True)
class DecayMeasurement:
    """What one step of an optimizer does to each weight of a model. Its text is a table, and what is odd.

    Attributes:
        optimizer: Class of the optimizer.
        parameters: Name -> measurement, of the trainable parameters that the optimizer has.
        missing: Trainable parameters that the optimizer lacks.
        plan: The layers of the model, and what does not decay by the rule that the findings go by.
    """

    optimizer: str
    parameters: dict[str, MeasuredDecay]
    missing: list[str]
    plan: LayerPlan

    @cached_property
    def findings(self) -> list[str]:
        """What is odd, a line each; empty if nothing is."""
        return [line for line in self._lines() if line]

    def _lines(self) -> Iterable[str]:
        of = self.parameters
        if self.missing:
            yield f"{_counted(self.missing)} trainable, but not in the optimizer"
        lost = [name for name, decay in of.items() if decay.weight_decay and not decay.decays]
        if lost:
            rates = value_range((of[name].weight_decay for name in lost), 4)
            yield f"{_counted(lost)} set to decay at {rates}, but one step leaves the weights as they are"
        mixed = [name for name, decay in of.items() if not decay.multiplies]
        if mixed:
            yield (
                f"{_counted(mixed)} changed, but not by one factor: the decay passes through the update "
                "(L2 penalty), so its strength does not follow weight_decay"
            )
        twice = [n for n, d in of.items() if n not in {*lost, *mixed} and not d.agrees and _is_twice(d)]
        if twice:
            yield f"{_counted(twice)} decayed twice: by {self._factors(twice)}"
        other = [n for n, d in of.items() if not d.agrees and n not in {*lost, *mixed, *twice}]
        if other:
            yield f"{_counted(other)} decayed by {self._factors(other)}"
        reasons: dict[str, list[str]] = {}
        for name, decay in of.items():
            if decay.decays and (reason := self.plan[name].exempt):
                reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            yield f"{_counted(names)} decayed, against the usual rule: {reason}"
        idle = [
            name
            for name, decay in of.items()
            if not decay.weight_decay and not decay.decays and self.plan[name].trained_rate
        ]
        if idle and not any(decay.decays for decay in of.values()):
            yield f"nothing decays: {_counted(idle)} without a rate"
        elif idle:
            yield f"{_counted(idle)} not decayed: no rate is set for them"

    def _factors(self, names: list[str]) -> str:
        measured = value_range((self.parameters[name].measured for name in names), 4)
        return f"{measured}, not {value_range((self.parameters[name].promised for name in names), 4)}"

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each layer: `stack`, `layer`, `elements`, and lists of rates set and measured.

        The rates are those of the elements that decay by the settings or in the measurement; `not_decayed` is
        the number of the other elements.
        """
        rows = []
        for layer in self.plan.layers:
            members = [
                (decay, self.plan[name].size)
                for name, decay in self.parameters.items()
                if (self.plan[name].stack, self.plan[name].layer) == (layer.stack, layer.layer)
            ]
            decayed = [decay for decay, _ in members if decay.decays or decay.weight_decay]
            rows.append(
                {
                    "stack": layer.stack,
                    "layer": layer.layer,
                    "modules": layer.modules,
                    "elements": sum(size for _, size in members),
                    "not_decayed": sum(s for d, s in members if not d.decays and not d.weight_decay),
                    "set": sorted({decay.weight_decay for decay in decayed}),
                    "measured": sorted({float(f"{decay.measured_rate:.3g}") for decay in decayed}),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Returns the measurement as JSON: `optimizer`, `findings`, `layers`, `parameters` and `missing`."""
        return {
            "optimizer": self.optimizer,
            "findings": self.findings,
            "layers": self.rows(),
            "parameters": {
                name: asdict(decay) | {"agrees": decay.agrees} for name, decay in self.parameters.items()
            },
            "missing": self.missing,
        }

    def __str__(self) -> str:
        header = ["layer", "parameters", "not decayed", "weight_decay set", "measured", "modules"]
        rows = [
            [
                f"{row['stack']}/{row['layer']}" if row["stack"] else str(row["layer"]),
                f"{row['elements']:,}",
                f"{row['not_decayed']:,}",
                value_range(row["set"], 4) or "-",
                value_range(row["measured"], 4) or "-",
                ", ".join(row["modules"]),
            ]
            for row in self.rows()
        ]
        odd = "\n".join(f"- {line}" for line in self.findings) or "- nothing: configured and measured agree"
        return f"{aligned(header, rows)}\nWhat is odd about the decay of {self.optimizer}:\n{odd}"


def measure_decay(
    optimizer: Optimizer, model: nn.Module, *, plan: LayerPlan | None = None
) -> DecayMeasurement:
    """Measures what one step of an optimizer does to each weight when all gradients are zero.

    Works for any optimizer that steps without a closure, of torch, timm or another library, around any model;
    both stay bit for bit as they are. See `hf_lpwd.zero_step.measure_parameters` for how it is done.

    Args:
        optimizer: The optimizer, or accelerate's wrapper of one.
        model: The model that it trains, wrapped or not.
        plan: What is to be expected; default: the plan of a `LayerwiseDecay`, else that all weights decay but
            those of `hf_lpwd.exemptions`.

    Raises:
        TypeError: The optimizer is DeepSpeed's, or no torch optimizer.
        ValueError: The optimizer has no trainable parameter of the model.
        RuntimeError: The optimizer cannot be stepped; the message holds the reason.

    Example:
        >>> import torch
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        >>> for line in measure_decay(optimizer, model).findings:
        ...     print(line)
        3 parameters (0.bias, 1.bias, 2.bias) are decayed, against the usual rule: bias
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    plan = plan or getattr(inner, "plan", None)
    if plan is None:
        plan = plan_layers(model, LPWDConfig(weight_decay=1.0, layer_schedule="uniform"))
    parameters = measure_parameters(optimizer, model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return DecayMeasurement(
        optimizer=type(inner).__name__,
        parameters=parameters,
        missing=[name for name in trained if name not in parameters],
        plan=plan,
    )


def _is_twice(decay: MeasuredDecay) -> bool:
    return abs(decay.measured - decay.promised**2) <= 2.0 * decay.resolution


def _counted(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    plural = "parameters" if len(names) > 1 else "parameter"
    return f"{len(names)} {plural} ({shown}) {'are' if len(names) > 1 else 'is'}"
