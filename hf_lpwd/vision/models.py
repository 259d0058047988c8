"""Models and image processors: pretrained, from scratch, and as weightless skeletons to look at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers  # whose classes take seconds to import, when they are used; a timm model needs none
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_lpwd.messages import BadInputError, counted, first_line, listed, unknown
from hf_lpwd.vision.model_args import ModelArguments, parse_overrides

#: Side in pixels of the images of a model whose configuration does not say.
DEFAULT_IMAGE_SIZE = 224
#: What a configuration derives from the number of its stages.
_STAGES = ("stage_names", "out_features", "out_indices")
#: Where timm's configurations hold the classes.
_TIMM_CLASSES = ("num_classes", "label_names", "label_descriptions")


def load_model_and_processor(args: ModelArguments, class_names: list[str]) -> tuple[nn.Module, Any]:
    """Loads or makes the model that `args` names, with a head for `class_names`, and its image processor.

    Raises:
        ValueError: There is no such model, or weights or settings do not fit; one line.
    """
    if args.model_name_or_path is None:
        config, image_size = _config_from_scratch(args, class_names)
        size = {"height": image_size, "width": image_size}
        return _from_config(config), transformers.ViTImageProcessor(size=size)
    name = args.model_name_or_path
    source = hub_options(args)
    try:
        config = transformers.AutoConfig.from_pretrained(args.config_name or name, **source)
        _set_classes(config, class_names)
        if args.model_type is not None and config.model_type != args.model_type:
            raise ValueError(
                f"model_type is {args.model_type!r}, but {name} is of type {config.model_type!r}"
            )
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **source
        )
        _check_mismatches(name, report["mismatched_keys"], len(class_names), args.ignore_mismatched_sizes)
        processor = load_processor(args.image_processor_name or name, **source)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(_why_not_loaded(name, error)) from error
    return model, processor


def load_trained(name: str, **hub_options: Any) -> tuple[transformers.PreTrainedModel, Any, list[str]]:
    """Loads a classifier whose every weight was trained, its image processor, and the names of its classes.

    Args:
        name: Output folder of a run, one of its checkpoints, or a model's name on the Hub.
        **hub_options: For `from_pretrained`: `cache_dir`, `revision`, `token`, `trust_remote_code`.

    Raises:
        BadInputError: There is no such model, its head is not in the checkpoint, or it is a model for several
            labels an image or for regression.
    """
    folder = Path(name).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInputError(f"{name} holds no trained model: name the output_dir of a run of hf-lpwd train")
    source = str(folder) if folder.exists() else name
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            source, output_loading_info=True, **hub_options
        )
        processor = load_processor(source, **hub_options)
    except (OSError, RuntimeError, ValueError) as error:
        here = "" if folder.exists() else "there is no such folder here, and of the Hub: "
        raise BadInputError(f"the model {name} cannot be loaded: {here}{first_line(error, 200)}") from error
    if report["missing_keys"]:
        missing = listed(sorted(report["missing_keys"]), most=3)
        raise BadInputError(
            f"{name} has no trained weights for {missing}: fine-tune it first with hf-lpwd train"
        )
    if model.config.problem_type not in (None, "single_label_classification"):
        raise BadInputError(f"{name} is a model for {model.config.problem_type}, not for one class an image")
    return model, processor, [model.config.id2label[index] for index in range(model.config.num_labels)]


def load_processor(name: str, **hub_options: Any) -> Any:
    """Loads an image processor."""
    # timm's has one backend, of which transformers warns.
    logger = transformers.utils.logging.get_logger("transformers.models.auto.image_processing_auto")
    logger.addFilter(_not_of_the_backend)
    return transformers.AutoImageProcessor.from_pretrained(name, **hub_options)


def _not_of_the_backend(record: Any) -> bool:
    return "backend is not available. Falling back" not in record.getMessage()


def _set_classes(config: transformers.PreTrainedConfig, class_names: list[str]) -> None:
    """Gives a configuration the classes of the dataset, and takes those of its checkpoint out of it."""
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: i for i, name in enumerate(class_names)}
    # transformers chooses the loss by the labels; a checkpoint for several labels an image names its own.
    config.problem_type = None
    # Saving would write those of before.
    for stale in _TIMM_CLASSES:
        vars(config).pop(stale, None)
    if getattr(config, "model_args", None):
        config.model_args = {key: value for key, value in config.model_args.items() if key != "num_classes"}


def _check_mismatches(
    name: str,
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    num_classes: int,
    new_head: bool,
) -> None:
    """Raises a ValueError where weights of a checkpoint do not fit, unless they are a head to be replaced.

    `mismatched` has each parameter with its shape in the checkpoint and its shape in the model.
    """
    for parameter, there, here in mismatched:
        is_head = len(there) == len(here) and here[0] == num_classes and tuple(there[1:]) == tuple(here[1:])
        if not is_head:
            raise ValueError(
                f"{name} cannot be loaded: its {parameter} is {list(there)}, the model's {list(here)}"
            )
        if not new_head:
            raise ValueError(
                f"the head of {name} has {counted(there[0], 'class', 'classes')}, the dataset {num_classes}: "
                "--ignore_mismatched_sizes starts a new one"
            )


def model_skeleton(name: str, overrides: str | None = None, **hub_options: Any) -> nn.Module:
    """Builds a model on the meta device, from its configuration alone.

    Args:
        name: A folder or configuration file, a transformers model type (``"vit"``), a timm architecture
            (``"vit_small_patch16_224"``, ``"timm/resnet18.a1_in1k"``), or a name on the Hub.
        overrides: As `ModelArguments.config_overrides`.
        **hub_options: For `AutoConfig.from_pretrained`: `revision`, `token`, `trust_remote_code`.

    Raises:
        ValueError: There is no such model.
    """
    if name in CONFIG_MAPPING_NAMES:
        config = transformers.AutoConfig.for_model(name)
    elif not os.path.exists(name) and (name.startswith("timm/") or "/" not in name):
        return _timm_skeleton(name.removeprefix("timm/"), overrides)
    else:
        config = _load_config(name, **hub_options)
    _apply_overrides(config, overrides)
    with torch.device("meta"):
        return _from_config(config, hub_options.get("trust_remote_code", False))


def _timm_skeleton(architecture: str, overrides: str | None) -> nn.Module:
    import timm

    arguments = parse_overrides(overrides) if overrides else {}
    if not timm.is_model(architecture):
        known = [*CONFIG_MAPPING_NAMES, *timm.list_models()]
        raise ValueError(unknown("model", architecture, known))
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, **arguments)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"timm cannot make {architecture} with {overrides}: {error}") from error


def _config_from_scratch(
    args: ModelArguments, class_names: list[str]
) -> tuple[transformers.PreTrainedConfig, int]:
    if args.config_name is not None:
        config = _load_config(args.config_name, **hub_options(args))
    elif args.model_type in _classifiers():
        config = transformers.AutoConfig.for_model(args.model_type)
    else:
        raise ValueError(unknown("image classification model_type", args.model_type, _classifiers()))
    for key in parse_overrides(args.config_overrides or "{}"):
        if key in ("id2label", "label2id", "num_labels", "problem_type", *_TIMM_CLASSES):
            raise ValueError(f"config_overrides: {key} is set by the dataset")
    image_size = _apply_overrides(config, args.config_overrides)
    _set_classes(config, class_names)
    # Made again: a backbone's stage names follow from its depths, and stale ones could be saved, not loaded.
    settings = {key: value for key, value in config.to_dict().items() if key not in _STAGES}
    try:
        return type(config).from_dict(settings), image_size
    except (TypeError, ValueError, StrictDataclassError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"no {config.model_type} can be made with these settings: {why}") from error


def _apply_overrides(config: transformers.PreTrainedConfig, text: dict | str | None) -> int:
    """Changes `config`; returns the side of its images, which `image_size` may set for any model."""
    overrides = parse_overrides(text) if text else {}
    if not hasattr(config, "image_size"):
        image_size = overrides.pop("image_size", DEFAULT_IMAGE_SIZE)
    else:
        image_size = overrides.get("image_size", config.image_size)
    for key, value in overrides.items():
        if not hasattr(config, key):
            raise ValueError(
                f"config_overrides: {unknown(f'{config.model_type} setting', key, config.to_dict())}"
            )
        # YAML reads 1e-5 as text.
        as_before = isinstance(getattr(config, key), float) and not isinstance(value, bool)
        try:
            setattr(config, key, float(value) if as_before else value)
        except (TypeError, ValueError, StrictDataclassError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"config_overrides: {key}={value!r}: {why}") from error
    side = image_size[0] if isinstance(image_size, (list, tuple)) else image_size
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"config_overrides: image_size is {image_size!r}, but must be a number of pixels")
    return side


def _from_config(config: transformers.PreTrainedConfig, trust_remote_code: bool = False) -> nn.Module:
    """Makes a model of the class that `config` names, or of its image classification class."""
    if config.model_type in _classifiers():
        classes = _classifiers()[config.model_type]
        # Where a type has several classes (DeiT with and without teacher), the auto class needs to be told.
        if not isinstance(classes, str) and not config.architectures:
            config.architectures = [classes[0]]
        auto_class = transformers.AutoModelForImageClassification
    else:
        named = [getattr(transformers, name, None) for name in config.architectures or []]
        if named and named[0] is not None:
            return named[0](config)
        auto_class = transformers.AutoModel
    try:
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"no {config.model_type} can be made with these settings: {first}") from error


def _classifiers() -> dict[str, Any]:
    """Model type -> name or names of its classes for image classification."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def hub_options(args: ModelArguments) -> dict[str, Any]:
    """Returns the keyword arguments with which `from_pretrained` gets a model from the Hub."""
    return {
        "cache_dir": args.cache_dir,
        "revision": args.model_revision,
        "token": args.token,
        "trust_remote_code": args.trust_remote_code,
    }


def _load_config(name: str, **hub_options: Any) -> transformers.PreTrainedConfig:
    try:
        return transformers.AutoConfig.from_pretrained(name, **hub_options)
    except (OSError, ValueError) as error:
        raise ValueError(_why_not_loaded(name, error)) from error


def _why_not_loaded(name: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"no model {name!r} in a folder here, in the cache or on the Hub ({first_line(error, 200)})"
    return f"{name} cannot be loaded: {first_line(error, 300)}"
