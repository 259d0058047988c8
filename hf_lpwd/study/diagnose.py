"""The paper's diagnostics on the user's own model and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_lpwd.study.callbacks import OpposingPenalty, accuracy
from hf_lpwd.study.quiet_run import layer_of_parameter, quiet_run, quiet_trainer
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.prepare import Run

#: What shrinking multiplies weights by.
SCALES = tuple(i / 10 for i in range(10, -1, -1))
#: How many times the trajectories are compared.
NUM_POINTS = 10

#: Name of a line -> its value at each x.
Lines = dict[str, list[float]]


def opposing_penalty(argv: Sequence[str], prog: str) -> tuple[list[float], Lines]:
    """Trains with timing ``wd`` and measures R_op (Figure 2 of the paper).

    Args:
        argv: Flags of `hf-lpwd train`; the timing is overruled.
        prog: The program's name in errors.

    Returns:
        Steps, and R_op at them: ``"all"``, and of each layer that decays.

    Raises:
        ValueError: Nothing decays.
    """
    with quiet_run(parse_args([*argv, "--decay_timing", "wd"], prog)) as (run, args):
        measured = OpposingPenalty(layer_of_parameter(run))
        quiet_trainer(run, args, [measured]).train()
    if not measured.steps:
        raise ValueError("no step was measured: set --weight_decay above 0, and --logging_steps low enough")
    return [float(step) for step in measured.steps], measured.rates


def shrink(argv: Sequence[str], prog: str) -> tuple[list[float], Lines]:
    """Scales the decayed weights of a trained model towards zero (Figure 3a of the paper).

    A model of `--model_name_or_path` is taken as it is; one from scratch is trained first.

    Args:
        argv: Flags of `hf-lpwd train`.
        prog: The program's name in errors.

    Returns:
        `SCALES`, and the validation accuracy at them: of ``"all"`` layers scaled, and of each one alone.
    """
    with quiet_run(parse_args(argv, prog)) as (run, args):
        if run.settings["model_name_or_path"] is None:
            quiet_trainer(run, args).train()
        run.model.to(args.device)
        return list(SCALES), shrunk_accuracies(run, args.per_device_eval_batch_size)


@torch.no_grad()
def shrunk_accuracies(run: Run, batch_size: int) -> Lines:
    """The measurement of `shrink` on a model that is trained; its weights are left as they were."""
    names = [name for name, planned in run.plan.parameters.items() if planned.not_decayed is None]
    parameters = dict(run.model.named_parameters())
    layer_of = layer_of_parameter(run)
    targets = {"all": names} | {
        layer: [name for name in names if layer_of[name] == layer]
        for layer in dict.fromkeys(layer_of[name] for name in names)
    }
    lines: Lines = {}
    for target, members in targets.items():
        kept = {name: parameters[name].clone() for name in members}
        for scale in SCALES:
            for name, weight in kept.items():
                parameters[name].copy_(weight * scale)
            lines.setdefault(target, []).append(accuracy(run.model, run.images["validation"], batch_size))
        for name, weight in kept.items():
            parameters[name].copy_(weight)
    return lines


class _Trajectory(TrainerCallback):
    """Keeps the weights at the start and at `NUM_POINTS` steps, or compares them with what another kept."""

    def __init__(self, reference: _Trajectory | None = None) -> None:
        self.reference = reference
        self.steps: list[int] = []
        self.weights: list[Tensor] = []
        self.distances: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reference is None:
            self.weights.append(_flat(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        points = {round(state.max_steps * (i + 1) / NUM_POINTS) for i in range(NUM_POINTS)}
        if state.global_step not in points:
            return
        self.steps.append(state.global_step)
        weights = _flat(kwargs["model"])
        if self.reference is None:
            self.weights.append(weights)
        else:
            start, there = self.reference.weights[0], self.reference.weights[len(self.steps)]
            self.distances.append(float((weights - there).norm() / (there - start).norm()))


def _flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).float().cpu() for p in model.parameters() if p.requires_grad])


def equivalence(argv: Sequence[str], prog: str) -> tuple[list[float], Lines]:
    """Trains with AdamW's timing, ``rwd`` and ``pwd`` from the same weights on the same batches.

    As a yardstick AdamW is also trained on other batches. The weights of ``pwd`` are those at rest, before
    the next step's decay.

    Args:
        argv: Flags of `hf-lpwd train`; the timing is overruled.
        prog: The program's name in errors.

    Returns:
        Steps, and the distance of each from AdamW's weights, as a share of AdamW's distance from the start.
    """
    reference = _trained(argv, prog, "wd", _Trajectory())
    lines = {
        timing: _trained(argv, prog, timing, _Trajectory(reference)).distances for timing in ("rwd", "pwd")
    }
    lines["wd, other batches"] = _trained(argv, prog, "wd", _Trajectory(reference), other=True).distances
    return [float(step) for step in reference.steps], lines


def _trained(
    argv: Sequence[str], prog: str, timing: str, walk: _Trajectory, other: bool = False
) -> _Trajectory:
    # The model that training ends with is the last one, not the best, so that the walks have no jump.
    flags = ["--decay_timing", timing, "--load_best_model_at_end", "False", "--save_strategy", "no"]
    with quiet_run(parse_args([*argv, *flags], prog)) as (run, args):
        if other:
            args.data_seed = args.seed + 1
        quiet_trainer(run, args, [walk]).train()
    return walk
