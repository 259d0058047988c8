"""Times an optimizer step of every decay timing against fused AdamW with the Trainer's two groups.

All are timed in turn, one step each, so that a change of the machine's speed meets all of them alike; a
ratio is the median over the rounds of step time to the baseline's in the same round. A second copy of the
baseline tells how much of a ratio is noise; torch's own AdamW given the groups of the linear schedule tells
how much is torch's price of the groups; the baseline and one product of as many contiguous numbers as there
are decayed weights is the least that `pwd` can take. The others come with `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import timm
import torch
from machine import conditions
from torch import nn

from hf_lpwd import create_lpwd_optimizer
from hf_lpwd.exemptions import exemptions
from hf_lpwd.files import write_json

MODELS = {
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "convnext_t": "convnext_tiny",
}
LR, WEIGHT_DECAY = 1e-4, 0.05
# Bytes that AdamW moves for each fp32 parameter: it reads weight, gradient and two moments, and writes three.
ADAMW_BYTES = 28
# Optimizers are made again so many times, as the other ones keep their own state.
SETS, WARM_UP = 5, 3
# Name -> module, class and distribution.
OTHERS = {
    "timm": ("timm.optim.adamw", "AdamWLegacy", "timm"),
    "optimi": ("optimi", "AdamW", "torch-optimi"),
    "schedulefree": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
    "pytorch_optimizer": ("pytorch_optimizer", "AdamW", "pytorch_optimizer"),
}


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Returns the parameter groups that a stock Trainer would make, with this package's rule of exemption."""
    exempt = exemptions(model)
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name not in exempt], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]


def others_here() -> dict[str, str]:
    """Returns the other optimizers that are installed: name -> distribution."""
    return {name: dist for name, (module, _, dist) in OTHERS.items() if importlib.util.find_spec(module)}


def contestants(model: nn.Module) -> dict[str, list[Callable[[], None]]]:
    """Returns what is timed: name -> the parts of one step, between which the gradients come new.

    All of them share the model's weights and gradients, and those on torch's AdamW its state too, since
    where these lie in memory is worth some percent.
    """
    state: defaultdict[torch.Tensor, Any] = defaultdict(dict)

    def fused(groups: list[dict[str, Any]]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
        optimizer.state = state
        return optimizer.step

    def ours(timing: str, **settings: Any) -> list[Callable[[], None]]:
        optimizer = create_lpwd_optimizer(
            model, lr=LR, weight_decay=WEIGHT_DECAY, decay_timing=timing, **settings
        )
        optimizer.state = state
        return [optimizer.train, optimizer.step]

    layer_groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in create_lpwd_optimizer(model, lr=LR, weight_decay=WEIGHT_DECAY).param_groups
    ]
    decayed = sum(p.numel() for group in layer_groups if group["weight_decay"] for p in group["params"])
    contiguous = torch.ones(decayed, device=next(model.parameters()).device)
    step_of_bound = fused(two_groups(model))

    def bound() -> None:
        contiguous.mul_(1.0 - LR * WEIGHT_DECAY)
        step_of_bound()

    steps = {
        "baseline": [fused(two_groups(model))],
        "baseline again": [fused(two_groups(model))],
        "its kernel, a group a layer": [fused(layer_groups)],
        "baseline and a product": [bound],
    }
    steps |= {timing: ours(timing) for timing in ("l2", "wd", "rwd", "pwd")}
    steps["rwd, layer_lr_decay"] = ours("rwd", layer_lr_decay=0.75)
    for name in others_here():
        module, cls, _ = OTHERS[name]
        optimizer = getattr(importlib.import_module(module), cls)(two_groups(model), lr=LR)
        if hasattr(optimizer, "train"):
            optimizer.train()
        steps[name] = [optimizer.step]
    return steps


class Gradients:
    """Gradients that are there in the last part of a step only, as `zero_grad` and `backward` leave them."""

    def __init__(self, model: nn.Module) -> None:
        self.params = list(model.parameters())
        self.values = [torch.randn_like(parameter) * 1e-3 for parameter in self.params]

    def before(self, part: int, parts: int) -> None:
        """Removes or makes them, at no cost in memory."""
        for parameter, value in zip(self.params, self.values, strict=True):
            parameter.grad = value if part == parts - 1 else None


def measure(
    steps: dict[str, list[Callable[[], None]]],
    gradients: Gradients,
    rounds: int,
    order: np.random.Generator,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Times one step of each in turn, in an order shuffled each round.

    Returns:
        Name -> seconds [rounds].
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-WARM_UP, rounds):
        for name in order.permutation(list(steps)):
            total = 0.0
            for i, part in enumerate(steps[name]):
                gradients.before(i, len(steps[name]))
                start = time.perf_counter()
                part()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                total += time.perf_counter() - start
            if round_ >= 0:
                seconds[name].append(total)
    return {name: np.array(values) for name, values in seconds.items()}


def whole_step(parts: list[Callable[[], None]], gradients: Gradients) -> Callable[[], None]:
    """Returns the parts of a step as one call."""

    def step() -> None:
        for i, part in enumerate(parts):
            gradients.before(i, len(parts))
            part()

    return step


def extra_memory(step: Callable[[], None], device: torch.device) -> int:
    """Returns the bytes by which a step, not the first one, raises the peak of memory in use."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    in_use = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            in_use += event.nbytes()
            peak = max(peak, in_use)
    return peak


def main() -> None:
    """Prints a table a model, and writes all figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=25, help=f"in each of {SETS} sets of optimizers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--output", default="benchmark_optimizer.json")
    args = parser.parse_args()
    # The profiler, which counts memory, would write its own lines each time.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    where = f"{conditions('torch', *others_here().values(), chip=chip)}; {args.threads} threads"
    print(f"{where}; fp32; {SETS} x {args.rounds} rounds")
    record: dict[str, Any] = {"conditions": where, "rounds": SETS * args.rounds, "models": {}}
    for key in args.models:
        model = timm.create_model(MODELS[key]).to(device)
        gradients = Gradients(model)
        size = sum(parameter.numel() for parameter in model.parameters())
        order = np.random.default_rng(0)
        sets = []
        for _ in range(SETS):
            steps = contestants(model)
            sets.append(measure(steps, gradients, args.rounds, order, device))
        seconds = {name: np.concatenate([times[name] for times in sets]) for name in sets[0]}
        base = float(np.median(seconds["baseline"]))
        print(f"\n{MODELS[key]}: {size:,} parameters; baseline {1e3 * base:.2f} ms, ", end="")
        print(f"{ADAMW_BYTES * size / base / 1e9:.1f} GB/s\n")
        print("| optimizer | median ratio | quartiles | extra bytes a parameter |\n|---|---|---|---|")
        rows = {}
        for name, values in seconds.items():
            low, median, high = np.quantile(values / seconds["baseline"], [0.25, 0.5, 0.75])
            memory = extra_memory(whole_step(steps[name], gradients), device) / size
            rows[name] = {
                "ratio": median,
                "quartiles": [low, high],
                "memory": memory,
                "seconds": values.tolist(),
            }
            print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} | {memory:.3f} |")
        record["models"][key] = {"parameters": size, "optimizers": rows}
    write_json(args.output, record)


if __name__ == "__main__":
    main()
