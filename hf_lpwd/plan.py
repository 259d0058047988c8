"""`plan_layers`: a model and an `LPWDConfig` in, a `LayerPlan` out: what will happen to each parameter.

The plan is what the optimizer is made from, and what `explain`, logs, model cards and records show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import fsum, prod
from typing import Any

from torch import nn

from hf_lpwd.config import LPWDConfig
from hf_lpwd.exemptions import exemptions, first_matches
from hf_lpwd.layers import LayerMap, layer_index_map
from hf_lpwd.parameters import full_shape, unwrap_name
from hf_lpwd.plan_table import PlannedLayer, PlannedParameter, aligned, layer_table
from hf_lpwd.schedules import layer_rates, parse_schedule


@dataclass(frozen=True)
class LayerPlan:
    """What will happen to each parameter of a model. Its text is a table.

    Attributes:
        config: The settings that it was made from.
        layer_map: The layers that it was made from.
        parameters: Name -> what will happen, for all of `model.named_parameters()`.
        rates: Stack -> the schedule's weight decay of each layer index, 0 to n.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> plan = plan_layers(model, LPWDConfig(weight_decay=0.5))
        >>> [(layer.layer, layer.modules, layer.rate) for layer in plan.layers]
        [(0, ['stem'], 0.0), (1, ['block 1'], 0.25), (2, ['head'], 0.5)]
        >>> [(group["weight_decay"], group["param_names"]) for group in plan.param_groups(model)][-1]
        (0.5, ['2.weight'])
    """

    config: LPWDConfig
    layer_map: LayerMap
    parameters: dict[str, PlannedParameter]
    rates: dict[str, list[float]]

    @cached_property
    def layers(self) -> list[PlannedLayer]:
        """The layers, in order of stack and index."""
        return [
            PlannedLayer.of(
                {name: p for name, p in self.parameters.items() if (p.stack, p.layer) == (stack, layer)},
                stack=stack,
                layer=layer,
                rate=rate,
                lr_scale=self.config.layer_lr_decay ** (len(rates) - 1 - layer),
            )
            for stack, rates in self.rates.items()
            for layer, rate in enumerate(rates)
        ]

    @property
    def mean_rate(self) -> float:
        """The mean weight decay over all elements that decay; 0.0 if none do."""
        decayed = [planned for planned in self.parameters.values() if planned.not_decayed is None]
        size = sum(planned.size for planned in decayed)
        return fsum(planned.rate * planned.size for planned in decayed) / size if size else 0.0

    def __getitem__(self, name: str) -> PlannedParameter:
        """What will happen to a parameter, by its name with or without the prefixes of wrappers.

        Raises:
            KeyError: The plan has no such parameter.
        """
        return self.parameters[self.known_name(name)]

    def __contains__(self, name: str) -> bool:
        return self.known_name(name) in self.parameters

    def known_name(self, name: str) -> str:
        """Returns the plan's name for a parameter, or the name itself where it has none."""
        return name if name in self.parameters else self._by_plain_name.get(unwrap_name(name), name)

    @cached_property
    def _by_plain_name(self) -> dict[str, str]:
        return {unwrap_name(name): name for name in self.parameters}

    def param_groups(self, model: nn.Module, *, lr: float | None = None) -> list[dict[str, Any]]:
        """Makes the parameter groups of an optimizer: one for each distinct rate and learning rate.

        Frozen parameters are left out, a tied parameter appears once, no group is empty.

        Args:
            model: The model that the plan was made for, or the same in DDP, `torch.compile` or the like.
            lr: Learning rate of the head; needed if `layer_lr_decay` is below 1.

        Returns:
            Groups with `params`, `param_names` and `weight_decay`, and under `layer_lr_decay` with `lr` and
            `layer_lr_scale`; by rising rate, parameters in the model's order.

        Raises:
            ValueError: The model has nothing to train, a parameter is not in the plan, or `lr` is missing.
        """
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("the model has no trainable parameter (requires_grad is False everywhere)")
        return self.groups_of(trained, lr=lr)

    def groups_of(
        self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float | None = None
    ) -> list[dict[str, Any]]:
        """As `param_groups`, for some parameters, whether or not they were frozen when the plan was made."""
        by_layer = self.config.layer_lr_decay < 1.0
        if by_layer and lr is None:
            raise ValueError("layer_lr_decay gives each layer its own learning rate: give lr, the head's")
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, parameter in named:
            if name not in self:
                known = next(iter(self.parameters))
                raise ValueError(f"the plan has no parameter {name!r}: names are like {known!r}")
            planned = self[name]
            key = planned.trained_rate, planned.lr_scale
            group = groups.setdefault(key, {"params": [], "param_names": [], "weight_decay": key[0]})
            group["params"].append(parameter)
            group["param_names"].append(name)
            if by_layer and lr is not None:
                group |= {"lr": lr * planned.lr_scale, "layer_lr_scale": planned.lr_scale}
        return [groups[key] for key in sorted(groups)]

    def added_groups(
        self, param_group: Mapping[str, Any], *, lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Divides a group that is to be added to an optimizer; its own settings replace the plan's.

        Raises:
            ValueError: The parameters have no names, or names that are not in the plan.
        """
        members = list(param_group["params"])
        if names := param_group.get("param_names"):
            members = list(zip(names, members, strict=True))
        if not all(isinstance(member, tuple) for member in members):
            raise ValueError(
                "the layers of added parameters are found by their names: give "
                "{'params': [(name, p) for name, p in model.named_parameters() if ...]}"
            )
        own = {key: value for key, value in param_group.items() if key not in ("params", "param_names")}
        return [{**group, **own} for group in self.groups_of(members, lr=lr)]

    def differences(self, model: nn.Module, param_groups: Iterable[Mapping[str, Any]]) -> list[str]:
        """Says in which timing, coupling, parameters, rates and lr scales an optimizer's groups differ.

        The model may be wrapped. A `weight_decay` that a schedule has changed since does not count.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found: dict[str, tuple[float, float]] = {}
        differences = []
        for group in param_groups:
            for key in ("decay_timing", "decay_coupling"):
                if key in group and group[key] != getattr(self.config, key):
                    differences.append(f"{key} is {group[key]!r}, planned {getattr(self.config, key)!r}")
            rate = group.get("initial_weight_decay", group["weight_decay"])
            unnamed = (names.get(id(p), "an unknown parameter") for p in group["params"])
            of_group = map(self.known_name, group.get("param_names") or unnamed)
            found |= dict.fromkeys(of_group, (rate, group.get("layer_lr_scale", 1.0)))
        trained = {self.known_name(name) for name, p in model.named_parameters() if p.requires_grad}
        differences += [f"{name} is not in the optimizer" for name in sorted(trained - found.keys())]
        for name, (rate, lr_scale) in found.items():
            if name not in self:
                differences.append(f"{name} is not in the plan")
            elif rate != self[name].trained_rate:
                differences.append(f"{name} has weight_decay {rate:g}, planned {self[name].trained_rate:g}")
            elif lr_scale != self[name].lr_scale:
                differences.append(f"{name} has layer_lr_scale {lr_scale:g}, planned {self[name].lr_scale:g}")
        return list(dict.fromkeys(differences))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON: `settings`, `mean_rate`, `table`, `layers` and `parameters`."""
        layers = [asdict(layer) for layer in self.layers]
        header, rows = layer_table(layers)
        return {
            "settings": self.config.to_dict(),
            "mean_rate": self.mean_rate,
            "table": {"header": header, "rows": rows},
            "layers": layers,
            "parameters": {name: planned.to_dict() for name, planned in self.parameters.items()},
        }

    def __str__(self) -> str:
        header, rows = layer_table([asdict(layer) for layer in self.layers])
        total = sum(layer.parameters for layer in self.layers)
        decayed = sum(layer.decayed for layer in self.layers)
        highest = self.config.weight_decay
        relative = f", {self.mean_rate / highest:.2f} of weight_decay {highest:g}" if highest else ""
        mean = f"at a mean rate of {self.mean_rate:.5g}{relative}"
        return f"{aligned(header, rows)}\n{total:,} parameters, {decayed:,} of them decayed, {mean}"


def plan_layers(model: nn.Module, config: LPWDConfig) -> LayerPlan:
    """Decides what will happen to each parameter of a model.

    Args:
        model: Any timm or transformers model, or any module with a repeated stack of blocks; weights may be
            on the meta device.
        config: The settings.

    Returns:
        The plan, also for frozen parameters.

    Raises:
        ValueError: A parameter has no layer, or a setting does not fit the model; the message names it.
        TypeError: `model` is not a module, or `config` not an `LPWDConfig`.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        >>> plan = plan_layers(model, LPWDConfig(weight_decay=0.3))
        >>> plan["3.weight"].layer, plan["3.weight"].rate, plan["3.bias"].not_decayed
        (3, 0.3, 'bias')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, not a {type(model).__name__}: give the model itself"
        )
    if not isinstance(config, LPWDConfig):
        raise TypeError(
            f"config must be an LPWDConfig, such as LPWDConfig(weight_decay=0.05), not {config!r}"
        )
    layer_map = layer_index_map(model, config.layer_map)
    names = [name for name, _ in model.named_parameters()]
    exempt = exemptions(model, no_decay_patterns=config.no_decay_patterns, decay_all=config.decay_all)
    patterns = {pattern: pattern for pattern in config.decay_by_pattern or {}}
    pattern_of = first_matches("decay_by_pattern", patterns, names)
    exempt = {name: reason for name, reason in exempt.items() if name not in pattern_of}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: full_shape(parameter) for name, parameter in model.named_parameters()}

    schedule = config.layer_schedule
    schedule = parse_schedule(schedule) if isinstance(schedule, str) else schedule
    rates: dict[str, list[float]] = {}
    for stack, n in layer_map.num_layers_by_stack.items():
        counts = [0] * (n + 1)
        for name in trained - exempt.keys() - pattern_of.keys():
            if layer_map.places[name].stack == stack:
                counts[layer_map.places[name].layer] += prod(shapes[name])
        budget = counts if config.match_decay_budget else None
        rates[stack] = layer_rates(config.weight_decay, n, schedule, decayed_counts=budget)

    parameters = {}
    for name in names:
        stack, index, module = layer_map.places[name]
        pattern = pattern_of.get(name)
        rate = 0.0 if name in exempt else rates[stack][index]
        if config.decay_by_pattern and pattern is not None:
            rate = config.decay_by_pattern[pattern]
        parameters[name] = PlannedParameter(
            stack=stack,
            layer=index,
            module=module,
            shape=shapes[name],
            trained_rate=float(rate),
            lr_scale=config.layer_lr_decay ** (layer_map.num_layers_by_stack[stack] - index),
            exempt=exempt.get(name),
            pattern=pattern,
            frozen=name not in trained,
        )
    return LayerPlan(config, layer_map, parameters, rates)


def explain(model: nn.Module, *, weight_decay: float, **settings: Any) -> LayerPlan:
    """Tells what `create_lpwd_optimizer` would do to each parameter: `plan_layers` in one line.

    Args:
        model: See `plan_layers`, also for what is raised.
        weight_decay: The highest rate, which the schedule distributes over the layers.
        **settings: The other settings of `LPWDConfig`.

    Returns:
        The plan; `print` shows it as a table.

    Examples:
        >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        >>> print(explain(model, weight_decay=0.5))
        layer  modules  parameters  decayed  rate  not decayed, and why
            0  stem             20       16     0  1 bias
            1  block 1          20       16  0.25  1 bias
            2  head             20       16   0.5  1 bias
        60 parameters, 48 of them decayed, at a mean rate of 0.25, 0.50 of weight_decay 0.5
    """
    return plan_layers(model, LPWDConfig(weight_decay=weight_decay, **settings))


def layer_name(stack: str, layer: int) -> str:
    """Returns what a layer is called in logs and records: ``"layer_3"``, ``"text_model/layer_3"``."""
    return f"{stack}/layer_{layer}" if stack else f"layer_{layer}"
