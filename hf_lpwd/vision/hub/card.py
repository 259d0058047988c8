"""The model card: what was trained, how, and what was measured."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_lpwd.files import FACTS, write_bytes, write_json
from hf_lpwd.messages import escaped, hide_tokens
from hf_lpwd.plan_table import TEXT_COLUMNS, layer_table
from hf_lpwd.vision.run_settings import changed_settings

if TYPE_CHECKING:
    from hf_lpwd.vision.prepare import Run

CARD = "README.md"

_LIBRARIES = ("hf-lpwd", "torch", "transformers", "accelerate", "datasets", "timm")
METRICS = {"accuracy": "Accuracy", "top5_accuracy": "Top-5 accuracy", "f1_macro": "Macro F1"}
#: Characters in a line of a command.
_WIDTH = 100
#: So many classes are named in the text; all of them are in config.json.
_MOST_CLASSES = 50
#: Shown in the command also where they are the defaults.
_ALWAYS_SHOWN = (
    *("weight_decay", "decay_timing", "layer_schedule", "learning_rate", "per_device_train_batch_size"),
    *("num_train_epochs", "seed", "augmentation"),
)
#: Left out of the command: they follow from others, or do not change what a run computes.
_NOT_SHOWN = {
    *("output_dir", "cache_dir", "run_name", "report_to", "model_license"),
    *("do_train", "do_eval", "do_predict"),
    *("save_strategy", "save_total_limit", "greater_is_better", "activation_checkpointing", "log_layers"),
    *("per_device_eval_batch_size", "dataloader_num_workers", "dataloader_persistent_workers"),
}
_NOT_SHOWN_BEGIN = ("hub_", "push_", "logging_")

_TIMINGS = {
    "l2": "as an L2 penalty: rate times weight is added to the gradient before the optimizer sees it",
    "wd": "decoupled from the gradient, computed from the weights before the step, as in AdamW",
    "rwd": "after the update, to the updated weights (real-time weight decay)",
    "pwd": "before the forward pass, so that the gradient is taken at the decayed weights (pre-weight decay)",
}


def command_of(run: Run, parts: Sequence[Any]) -> str:
    """Returns the command of a run: every setting that decides what it computes, wherever it was given.

    A setting that has its default is left out, except for the most important ones. Of full paths only the
    last part is shown. The augmentation is the one in use, also where the data chose it.
    """
    settings = changed_settings(parts)
    for part in parts:
        shown = [name for name in _ALWAYS_SHOWN if hasattr(part, name)]
        settings = {name: getattr(part, name) for name in shown} | settings
    if "train" in run.images:
        settings["augmentation"] = run.images["train"].transform.augmentation
    if settings.get("load_best_model_at_end"):
        del settings["load_best_model_at_end"]
    lines = ["hf-lpwd train"]
    for name, value in settings.items():
        if value is None or name in _NOT_SHOWN or name.startswith(_NOT_SHOWN_BEGIN):
            continue
        several = value if isinstance(value, list) else [value]
        texts = (json.dumps(one) if isinstance(one, dict) else str(one) for one in several)
        flag = shlex.join([f"--{name}", *(_without_folders(text) for text in texts)])
        if len(lines[-1]) + len(flag) > _WIDTH:
            lines.append(f"    {flag}")
        else:
            lines[-1] += f" {flag}"
    return hide_tokens(" \\\n".join(lines))


def plain(value: object) -> str:
    """Returns text that shows as itself in Markdown, tables and HTML included, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|~&$:])", r"\\\1", escaped(value))


def card_facts(
    run: Run,
    metrics: Mapping[str, Mapping[str, float]],
    parts: Sequence[Any],
    decay_findings: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns all that a card says of a run, as JSON, so that it can be written again without model and data.

    Args:
        run: The run.
        metrics: Split -> metric -> value.
        parts: Its arguments; the last part of `output_dir` is the model's name.
        decay_findings: What `measure_decay` found odd about the optimizer; None if it was not measured.
    """
    settings, args = run.settings, parts[-1]
    # The path of a local folder says nothing to others and may say too much: its last part stands for it.
    dataset_id, model_id = _hub_name(settings["dataset_name"]), _hub_name(settings["model_name_or_path"])
    measured = {
        split: {metric: values[metric] for metric in METRICS if metric in values}
        for split, values in metrics.items()
    }
    return {
        "name": Path(str(args.output_dir)).absolute().name,
        "license": args.model_license,
        "model_id": model_id,
        "base_model": model_id or Path(settings["model_name_or_path"] or "").name,
        "dataset_id": dataset_id,
        "dataset": dataset_id or Path(run.splits.name).name,
        "class_names": run.splits.class_names,
        "deep_images": run.splits.facts.images is not None and run.splits.facts.images.scale is not None,
        "settings": {key: _without_folders(value) for key, value in settings.items() if value is not None},
        "layers": run.plan.to_dict()["layers"],
        "mean_rate": run.plan.mean_rate,
        "decay_findings": None if decay_findings is None else list(decay_findings),
        "metrics": measured,
        "sizes": {split: len(images) for split, images in run.images.items()},
        "validation_chose": bool(args.load_best_model_at_end) and "validation" in measured,
        "validation_is_cut": run.splits.sources.get("validation") == run.splits.sources["train"],
        "command": command_of(run, parts),
        "versions": {
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
        "over_seeds": None,
    }


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the card of a run, and the facts that it is made from."""
    write_json(folder / FACTS, facts)
    write_bytes(folder / CARD, str(model_card(facts)).encode())


def model_card(facts: Mapping[str, Any]) -> ModelCard:
    """Fills `model_cards/template.md`, without network.

    The figures in the metadata are those of these weights, also where there are some over several seeds: this
    is what the Hub's `model-index` means by a result. The intervals stand in the text.

    Args:
        facts: From `card_facts`; `over_seeds` may be what `hf_lpwd.study.over_seeds` makes of several runs.

    Returns:
        A card with metadata, not yet written.
    """
    settings, measured, layers = facts["settings"], facts["metrics"], facts["layers"]
    findings = facts.get("decay_findings")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", "lpwd", "weight-decay"],
        metrics=["accuracy", "f1"],
        license=facts["license"],
        base_model=facts["model_id"],
        datasets=[facts["dataset_id"]] if facts["dataset_id"] else None,
        model_name=facts["name"],
        eval_results=_eval_results(facts),
    )
    shown = [key for key in METRICS if any(key in values for values in measured.values())]
    header, rows = layer_table(layers)
    classes = [plain(name) for name in facts["class_names"]]
    more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
    return ModelCard.from_template(
        data,
        template_str=resources.files("hf_lpwd.model_cards").joinpath("template.md").read_text("utf-8"),
        **{key: facts[key] for key in ("sizes", "validation_chose", "validation_is_cut", "versions")},
        over_seeds=facts["over_seeds"],
        deep_images=facts.get("deep_images", False),
        name=plain(facts["name"]),
        load_as=json.dumps(facts["name"]),
        base_model=plain(facts["base_model"]),
        dataset=plain(facts["dataset"]),
        num_classes=len(classes),
        classes=", ".join(classes[:_MOST_CLASSES]) + more,
        decay={key: plain(settings[key]) for key in ("weight_decay", "layer_schedule", "optim")},
        seed=settings["seed"],
        devices=settings["devices"],
        settings={plain(key): plain(value) for key, value in settings.items() if key != "class_names"},
        timing=_TIMINGS[settings["decay_timing"]],
        match_budget=settings["match_decay_budget"],
        coupled=settings["decay_coupling"] == "lr",
        layer_header=[plain(name) for name in header],
        layer_alignment=["---" if name in TEXT_COLUMNS else "--:" for name in header],
        layer_rows=[[plain(cell) for cell in row] for row in rows],
        mean_rate=facts.get("mean_rate"),
        nothing_decays=facts.get("mean_rate") == 0,
        decay_findings=findings if findings is None else [plain(line) for line in findings],
        layer_lr_decay=settings.get("layer_lr_decay", 1.0),
        metric_names=[METRICS[key] for key in shown],
        measured={
            split: [f"{values[key]:.4f}" if key in values else "" for key in shown]
            for split, values in measured.items()
        },
        command=_fenced(facts["command"]),
    )


def _eval_results(facts: Mapping[str, Any]) -> list[EvalResult] | None:
    """Returns the figures as metadata, from which the Hub fills its tables; None if there are none."""
    dataset_id = facts["dataset_id"]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_id or "image",
            dataset_name=facts["dataset"],
            dataset_config=facts["settings"].get("dataset_config_name") if dataset_id else None,
            dataset_split=split,
            metric_type=metric,
            metric_name=METRICS[metric],
            metric_value=round(value, 6),
        )
        for split, values in facts["metrics"].items()
        for metric, value in values.items()
    ]
    return results or None


def _hub_name(given: str | None) -> str | None:
    """Returns the name of a model or dataset on the Hub; None for local ones."""
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


def _fenced(text: str) -> str:
    """Returns a Markdown code block, which no run of backticks in `text` can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
