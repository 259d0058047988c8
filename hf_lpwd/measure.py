"""What one step of an optimizer really does to a model, by layer and in words: what is odd about its decay.

`measure_decay` tells, `assert_decays` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_lpwd.config import LPWDConfig
from hf_lpwd.measured_decay import MeasuredDecay, measure_parameters
from hf_lpwd.messages import counted, value_range
from hf_lpwd.plan import LayerPlan, plan_layers
from hf_lpwd.plan_table import aligned


@dataclass(frozen=True)
class DecayMeasurement:
    """What one step of an optimizer does to each weight of a model. Its text is a table, and what is odd.

    Attributes:
        optimizer: Class of the optimizer.
        parameters: Name -> measurement, of the trainable parameters that the optimizer has.
        missing: Trainable parameters that the optimizer lacks.
        plan: The layers of the model, and what does not decay by the rule that the findings go by.

    Examples:
        >>> from torch.optim import AdamW
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        >>> print(measure_decay(optimizer, model))
        layer  parameters  not decayed  weight_decay set  measured  modules
            0          20            0               0.5       0.5  stem
            1          20            0               0.5       0.5  block 1
            2          20            0               0.5       0.5  head
        What is odd about the decay of AdamW:
        - 3 parameters (0.bias, 1.bias, 2.bias) are decayed, against the usual rule: bias
    """

    optimizer: str
    parameters: dict[str, MeasuredDecay]
    missing: list[str]
    plan: LayerPlan

    @cached_property
    def findings(self) -> list[str]:
        """What is odd, a line each; empty if nothing is."""
        return list(self._find())

    def _find(self) -> Iterable[str]:
        of = self.parameters
        if self.missing:
            yield f"{_named(self.missing)} trainable, but not in the optimizer"
        lost = [name for name, decay in of.items() if decay.weight_decay and not decay.decays]
        if lost:
            rates = value_range((of[name].weight_decay for name in lost), 4)
            yield f"{_named(lost)} set to decay at {rates}, but one step leaves the weights as they are"
        mixed = [name for name, decay in of.items() if not decay.multiplies]
        if mixed:
            yield (
                f"{_named(mixed)} changed, but not by one factor: the decay passes through the update "
                "(L2 penalty), so its strength does not follow weight_decay"
            )
        wrong = [n for n, d in of.items() if d.multiplies and not d.agrees and n not in lost]
        twice = [n for n in wrong if abs(of[n].measured - of[n].promised ** 2) <= 2.0 * of[n].resolution]
        if twice:
            yield f"{_named(twice)} decayed twice: by {self._factors(twice)}"
        if other := [name for name in wrong if name not in twice]:
            yield f"{_named(other)} decayed by {self._factors(other)}"
        reasons: dict[str, list[str]] = {}
        for name, decay in of.items():
            if decay.decays and (reason := self.plan[name].exempt):
                reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            yield f"{_named(names)} decayed, against the usual rule: {reason}"
        without = [name for name, d in of.items() if not d.weight_decay and not d.decays]
        idle = [name for name in without if self.plan[name].trained_rate]
        if idle and not any(decay.decays for decay in of.values()):
            yield f"nothing decays: {_named(idle)} without a rate"
        elif idle:
            yield f"{_named(idle)} not decayed: no rate is set for them"

    def _factors(self, names: list[str]) -> str:
        measured = value_range((self.parameters[name].measured for name in names), 4)
        return f"{measured}, not {value_range((self.parameters[name].promised for name in names), 4)}"

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each layer, with the rates of the parameters that decay or should decay."""
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
            "parameters": {name: asdict(d) | {"agrees": d.agrees} for name, d in self.parameters.items()},
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

    Optimizer, model, gradients and random numbers stay bit for bit as they are.

    Args:
        optimizer: Any torch optimizer that steps without a closure, or accelerate's wrapper of one.
        model: The model that it trains, wrapped (DDP, FSDP2, PEFT, `torch.compile`) or not.
        plan: What is to be expected; default: the plan of a `LayerwiseDecay`, else that all weights decay but
            those of `hf_lpwd.exemptions`.

    Returns:
        The measurement. Its text is a table by layer; `findings` are what is odd, a line each.

    Raises:
        TypeError: The optimizer steps copies of the weights, as those of DeepSpeed do.
        ValueError: The optimizer has no trainable parameter of the model, or a parameter has no layer.
        RuntimeError: The optimizer cannot make such a step; the message has the reason.

    Examples:
        >>> from torch.optim import AdamW
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
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


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{counted(len(names), 'parameter')} ({shown}) {'are' if len(names) > 1 else 'is'}"


def assert_decays(
    optimizer: Optimizer, model: nn.Module, expected: LayerPlan | LPWDConfig | Callable[[str, Tensor], float]
) -> None:
    """Asserts that a step decays each parameter at the rate that is expected, and no other; for test suites.

    Args:
        optimizer: See `measure_decay`.
        model: See `measure_decay`.
        expected: A plan, the settings of one, or a function from a parameter's name and the parameter to its
            rate.

    Raises:
        AssertionError: A rate differs, or a trainable parameter is not in the optimizer; names the first.
        TypeError: `expected` is none of these.

    Examples:
        >>> from hf_lpwd import create_lpwd_optimizer
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> optimizer = create_lpwd_optimizer(model, lr=0.1, weight_decay=0.5)
        >>> assert_decays(optimizer, model, LPWDConfig(weight_decay=0.5))
    """
    if isinstance(expected, LPWDConfig):
        expected = plan_layers(model, expected)
    if not isinstance(expected, LayerPlan) and not callable(expected):
        raise TypeError(f"expected must be an LPWDConfig, a LayerPlan or a function, not {expected!r}")
    measured = measure_parameters(optimizer, model)
    faults = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if (decay := measured.get(name)) is None:
            faults.append(f"{name} is not in the optimizer")
            continue
        rate = expected[name].trained_rate if isinstance(expected, LayerPlan) else expected(name, parameter)
        factor = 1.0 - decay.strength * rate
        if abs(decay.measured - factor) > decay.resolution or not decay.multiplies:
            faults.append(f"{name} decays at {decay.measured_rate:.4g}, not at {rate:.4g}")
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise AssertionError("; ".join(faults[:3]) + more)
