"""The model card: what was trained, how, and what was measured."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_lpwd.messages import hide_tokens

if TYPE_CHECKING:
    from hf_lpwd.vision.arguments import ImageTrainingArguments
    from hf_lpwd.vision.finetune import Run

_LIBRARIES = ("hf-lpwd", "torch", "transformers", "accelerate", "datasets", "timm")
_METRICS = {"accuracy": "Accuracy", "top5_accuracy": "Top-5 accuracy", "f1_macro": "Macro F1"}
_SECRET_FLAGS = ("--token", "--hub_token", "--hub-token")
#: So many classes are named in the text; all of them are in config.json.
_MOST_CLASSES = 50

_TIMINGS = {
    "l2": "as an L2 penalty: rate times weight is added to the gradient, before the optimizer sees it",
    "wd": "decoupled from the gradient, at the weights of before the step, as in AdamW",
    "rwd": "after the update, so that it sees the weight that the update has made (real-time weight decay)",
    "pwd": "before the gradient is taken, and so at the decayed weights (pre-weight decay)",
}


@dataclass(frozen=True)
class OverSeeds:
    """A metric over runs that differ in the seed alone: its mean, and the 95% interval of that mean."""

    split: str
    metric: str
    seeds: Sequence[int]
    mean: float
    low: float
    high: float


def public_command(argv: Sequence[str]) -> str:
    """Returns a command line as it may be published: without tokens, and with the last part of full paths."""
    shown = []
    hide = False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if hide or (equals and flag in _SECRET_FLAGS):
            shown.append("..." if hide else f"{flag}=...")
        elif equals and flag.startswith("--"):
            shown.append(f"{flag}={_without_folders(value)}")
        else:
            shown.append(_without_folders(argument))
        hide = argument in _SECRET_FLAGS
    return hide_tokens(shlex.join(["hf-lpwd", "train", *shown]))


def plain(value: object) -> str:
    """Returns text that shows as itself in Markdown, tables and HTML included, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|~&$:])", r"\\\1", " ".join(str(value).split()))


def model_card(
    run: Run,
    metrics: Mapping[str, Mapping[str, float]],
    args: ImageTrainingArguments,
    command: Sequence[str],
    over_seeds: Sequence[OverSeeds] = (),
) -> ModelCard:
    """Fills `model_cards/template.md`, without network.

    Args:
        run: The run, as `finetune.prepare` made it.
        metrics: Split -> metric -> value.
        args: How it was trained; the last part of `output_dir` is the model's name.
        command: The command line after ``hf-lpwd train``.
        over_seeds: Figures of the same settings over several seeds, where there are any.

    Returns:
        A card with metadata, not yet written.
    """
    settings = run.settings
    name = Path(str(args.output_dir)).absolute().name
    # The path of a local folder says nothing to others and may say too much: its last part stands for it.
    dataset_id, model_id = _hub_name(settings["dataset_name"]), _hub_name(settings["model_name_or_path"])
    dataset = dataset_id or Path(run.splits.name).name
    measured = {
        split: {metric: values[metric] for metric in _METRICS if metric in values}
        for split, values in metrics.items()
    }
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", "lpwd", "weight-decay"],
        metrics=["accuracy", "f1"],
        license=args.model_license,
        base_model=model_id,
        datasets=[dataset_id] if dataset_id else None,
        model_name=name,
        eval_results=_eval_results(measured, dataset_id, dataset, settings["dataset_config_name"]),
    )
    shown = [key for key in _METRICS if any(key in values for values in measured.values())]
    several_stacks = len({row.stack for row in run.explanation.layers}) > 1
    classes = [plain(name) for name in run.splits.class_names]
    more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
    return ModelCard.from_template(
        data,
        template_str=resources.files("hf_lpwd.model_cards").joinpath("template.md").read_text("utf-8"),
        name=plain(name),
        load_as=json.dumps(name),
        base_model=plain(model_id or Path(settings["model_name_or_path"] or "").name),
        dataset=plain(dataset),
        num_classes=len(classes),
        classes=", ".join(classes[:_MOST_CLASSES]) + more,
        decay={key: plain(settings[key]) for key in ("weight_decay", "layer_schedule", "optim")},
        seed=settings["seed"],
        settings={plain(key): plain(_without_folders(v)) for key, v in settings.items() if v is not None},
        timing=_TIMINGS[settings["decay_timing"]],
        match_budget=settings["match_decay_budget"],
        coupled=settings["decay_coupling"] == "lr",
        layers=[
            [
                *([plain(row.stack)] if several_stacks else []),
                *(row.layer, plain(", ".join(row.modules)), row.parameters, row.decayed, f"{row.rate:.4g}"),
            ]
            for row in run.explanation.layers
        ],
        several_stacks=several_stacks,
        metric_names=[_METRICS[key] for key in shown],
        measured={
            split: [f"{values[key]:.4f}" if key in values else "" for key in shown]
            for split, values in measured.items()
        },
        sizes={split: len(images) for split, images in run.images.items()},
        validation_chose=bool(args.load_best_model_at_end) and "validation" in measured,
        validation_is_cut=run.splits.sources.get("validation") == run.splits.sources["train"],
        over_seeds=over_seeds,
        deep_pictures=_has_deep_pictures(run),
        command=_fenced(public_command(command)),
        versions={
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
    )


def _eval_results(
    measured: Mapping[str, Mapping[str, float]], dataset_id: str | None, dataset: str, config: str | None
) -> list[EvalResult] | None:
    """Returns the figures as metadata, from which the Hub fills its tables; None if there are none."""
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_id or "image",
            dataset_name=dataset,
            dataset_config=config if dataset_id else None,
            dataset_split=split,
            metric_type=metric,
            metric_name=_METRICS[metric],
            metric_value=round(value, 6),
        )
        for split, values in measured.items()
        for metric, value in values.items()
    ]
    return results or None


def _hub_name(given: str | None) -> str | None:
    """Returns the name of a model or data set on the Hub; None for local ones."""
    if given is None or Path(given).expanduser().exists():
        return None
    try:
        validate_repo_id(given)
    except HFValidationError:
        return None
    return given


def _without_folders(value: Any) -> Any:
    """Returns a full path with its last part alone; anything else as it is."""
    whole = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return f".../{Path(value).name}" if whole else value


def _has_deep_pictures(run: Run) -> bool:
    """Whether the first training picture has more than 8 bits, as those of a data set do alike."""
    try:
        mode = run.splits.train[0][run.splits.image_column].mode
    except Exception:  # each of PIL's format plugins fails in its own way on damaged files
        return False
    return mode == "F" or mode.startswith("I")


def _fenced(text: str) -> str:
    """Returns a Markdown code block, which no run of backticks in `text` can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
