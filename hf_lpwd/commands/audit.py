"""`hf-lpwd audit MODEL`: what the Trainer, timm and this package decay of a model, measured side by side."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from hf_lpwd.commands.flags import add_config, skeleton
from hf_lpwd.messages import OneLineParser, counted, refuse

#: Of no consequence for who decays, but large enough to be measured.
_LR = 1e-2


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `hf-lpwd audit`."""
    parser = OneLineParser(
        prog="hf-lpwd audit",
        description="Show which parameters of a model decay in transformers' Trainer, with timm's "
        "create_optimizer_v2, and in this package. Each library builds its own optimizer; what a step of it "
        "decays is measured. Needs the model's configuration, not its weights.",
    )
    add_config(parser)
    parser.add_argument(
        "--optim", nargs="+", default=["adamw_torch"], help="the Trainer's --optim (default: adamw_torch)"
    )
    parser.add_argument("--weight_decay", type=float, default=0.05, help="default: %(default)s")
    return parser


def audit(model: Any, weight_decay: float = 0.05, optims: Sequence[str] = ("adamw_torch",)) -> dict[str, Any]:
    """Measures what each library decays of a model.

    The rules of all three read names, modules, numbers of axes and which of them have one element. So each
    parameter is replaced by one with at most two elements along each axis; no model is too large then.

    Args:
        model: The model; its parameters, on the meta device or not, are replaced.
        weight_decay: The rate that each library is given; above 0.
        optims: Values of `TrainingArguments.optim`.

    Returns:
        `libraries`, their names in order, and `parameters`: name -> `layer` (with its stack), `kind`,
        `elements` and `rates` (library -> measured rate).

    Raises:
        ValueError: A layer of the model cannot be found, or no such `optim`.
        RuntimeError: An optimizer cannot be stepped.
        ImportError: The package of an `optim` is missing.
    """
    from hf_lpwd.config import LPWDConfig
    from hf_lpwd.measured_decay import measure_parameters
    from hf_lpwd.plan import layer_name, plan_layers

    plan = plan_layers(model, LPWDConfig(weight_decay=weight_decay, layer_schedule="uniform"))
    _shrink(model)
    rates = {}
    for library, optimizer in _optimizers(model, plan, weight_decay, optims):
        measured = measure_parameters(optimizer, model)
        rates[library] = {name: _rate(measured.get(name)) for name in plan.parameters}
    return {
        "libraries": list(rates),
        "parameters": {
            name: {
                "layer": layer_name(planned.stack, planned.layer),
                "kind": planned.exempt or "weight",
                "elements": prod(planned.shape),
                "rates": {library: of[name] for library, of in rates.items()},
            }
            for name, planned in plan.parameters.items()
            if not planned.frozen
        },
    }


def _shrink(model: Any) -> None:
    """Gives parameters and buffers no more than two elements along each axis; tied ones stay tied."""
    import torch

    small: dict[int, Any] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in small:
                shape = [min(size, 2) for size in tensor.shape]
                # Not all the same: an L2 penalty would look like a factor.
                value = torch.linspace(0.5, 1.5, prod(shape)).reshape(shape).to(tensor.dtype)
                if isinstance(tensor, torch.nn.Parameter):
                    value = torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
                    vars(value).update(vars(tensor))
                small[id(tensor)] = value
            setattr(module, name, small[id(tensor)])


def _optimizers(
    model: Any, plan: Any, weight_decay: float, optims: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """The libraries' names and optimizers, each built by its own library."""
    import timm.optim
    import torch
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        for optim in optims:
            args = TrainingArguments(
                folder, optim=optim, learning_rate=_LR, weight_decay=weight_decay, use_cpu=True, report_to=[]
            )
            name = f"Trainer {optim}" if len(optims) > 1 else "Trainer"
            yield name, Trainer(model=model, args=args).create_optimizer()
    inner = getattr(model, "timm_model", model)
    yield "timm", timm.optim.create_optimizer_v2(inner, "adamw", lr=_LR, weight_decay=weight_decay)
    yield "hf_lpwd", torch.optim.AdamW(plan.param_groups(model), lr=_LR)


def _rate(decay: Any) -> float | None:
    """Measured rate to three digits; None if a step does not decay by one factor or lacks the parameter."""
    if decay is None or not decay.multiplies:
        return None
    return float(f"{decay.measured_rate:.3g}") if decay.decays else 0.0


def as_text(found: dict[str, Any]) -> str:
    """Returns what `audit` found as tables: what the libraries differ on, and the rest by kind."""
    from hf_lpwd.plan_table import aligned

    rows: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = {}
    for name, about in found["parameters"].items():
        differs = len(set(about["rates"].values())) > 1
        label = name_pattern(name) if differs else about["kind"]
        key = (not differs, label, about["kind"], *about["rates"].values())
        rows.setdefault(key, []).append((name, about))
    header = ["name", "kind", "layers", "parameters", "elements", *found["libraries"]]
    texts: dict[bool, list[list[str]]] = {True: [], False: []}
    for (agreed, label, kind, *rates), members in rows.items():
        layers = list(dict.fromkeys(about["layer"] for _, about in members))
        texts[not agreed].append(
            [
                label if not agreed else f"{members[0][0]}{', ...' if len(members) > 1 else ''}",
                kind,
                layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}",
                str(len(members)),
                f"{sum(about['elements'] for _, about in members):,}",
                *("mixed" if rate is None else f"{rate:g}" if rate else "-" for rate in rates),
            ]
        )
    parts = []
    for differs, title in ((True, "They differ on"), (False, "They agree on")):
        if texts[differs]:
            number = sum(int(row[3]) for row in texts[differs])
            parts.append(f"{title} {counted(number, 'parameter')}:")
            parts.append(aligned(header, texts[differs]))
    return "\n".join(parts)


def name_pattern(name: str) -> str:
    """Returns a parameter's name with ``*`` for each number, which is the same in all blocks."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd audit`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.weight_decay > 0:
        parser.error(f"weight_decay is {args.weight_decay}, but must be above 0 to be measured")
    try:
        found = audit(skeleton(args), args.weight_decay, args.optim)
    except (ValueError, RuntimeError, ImportError) as error:
        return refuse(parser.prog, error)
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0
