"""The model card: what was trained, how, and what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

if TYPE_CHECKING:
    from hf_lpwd.vision.finetune import Run

_LIBRARIES = ("hf-lpwd", "torch", "transformers", "accelerate", "datasets", "timm")
_METRICS = {"accuracy": "Accuracy", "top5_accuracy": "Top-5 accuracy", "f1_macro": "Macro F1"}
_SECRET_FLAGS = ("--token", "--hub_token", "--hub-token")

_TIMINGS = {
    "l2": "as an L2 penalty: rate times weight is added to the gradient, before the optimizer sees it",
    "wd": "decoupled from the gradient, at the weights of before the step, as in AdamW",
    "rwd": "after the update, so that it sees the weight that the update has made (real-time weight decay)",
    "pwd": "before the gradient is taken, and so at the decayed weights (pre-weight decay)",
}


def public_command(argv: Sequence[str]) -> str:
    """Returns a command line as it may be published: without the values of tokens."""
    shown = []
    hide = False
    for argument in argv:
        flag, equals, _ = argument.partition("=")
        shown.append("..." if hide else f"{flag}=..." if equals and flag in _SECRET_FLAGS else argument)
        hide = argument in _SECRET_FLAGS
    return shlex.join(["hf-lpwd", "train", *shown])


def model_card(
    run: Run, metrics: Mapping[str, Mapping[str, float]], name: str, command: Sequence[str]
) -> ModelCard:
    """Fills `model_cards/template.md`.

    Args:
        run: The run, as `finetune.prepare` made it.
        metrics: Split -> metric -> value.
        name: The model's name, the last part of the output folder.
        command: The command line after ``hf-lpwd train``.

    Returns:
        A card with metadata, not yet written.
    """
    settings = run.settings
    # The path of a local folder says nothing to others and may say too much: its last part stands for it.
    dataset_id, model_id = _hub_name(settings["dataset_name"]), _hub_name(settings["model_name_or_path"])
    dataset = dataset_id or Path(run.splits.name).name
    base_model = model_id or Path(settings["model_name_or_path"] or "").name
    measured = {
        split: {metric: values[metric] for metric in _METRICS if metric in values}
        for split, values in metrics.items()
    }
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_id or "image",
            dataset_name=dataset,
            dataset_split=split,
            metric_type=metric,
            metric_name=_METRICS[metric],
            metric_value=round(value, 6),
        )
        for split, values in measured.items()
        for metric, value in values.items()
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", "lpwd", "weight-decay"],
        metrics=["accuracy", "f1"],
        base_model=model_id,
        datasets=[dataset_id] if dataset_id else None,
        model_name=name,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_str=resources.files("hf_lpwd.model_cards")
        .joinpath("template.md")
        .read_text(encoding="utf-8"),
        name=name,
        base_model=base_model,
        dataset=dataset,
        class_names=run.splits.class_names,
        settings=settings,
        timing=_TIMINGS[settings["decay_timing"]],
        layers=run.explanation.layers,
        several_stacks=len({row.stack for row in run.explanation.layers}) > 1,
        metric_names=[name for key, name in _METRICS.items() if any(key in v for v in measured.values())],
        measured=measured,
        sizes={split: len(images) for split, images in run.images.items()},
        command=public_command(command),
        versions={library: metadata.version(library) for library in _LIBRARIES},
    )


def _hub_name(given: str | None) -> str | None:
    """Returns the name of a model or data set on the Hub; None for local ones."""
    return None if given is None or Path(given).expanduser().exists() else given
