"""Compares the layers of all of timm's and transformers' models with the order in which their modules run.

    python scripts/check_layers.py timm
    python scripts/check_layers.py transformers --only 'vit|swin' --results vit.jsonl

Models are built, and run, on the meta device: timm's at their size, transformers' from the default
configuration of each class, cut to three layers a stack where the class allows it. Forward hooks see when
each module with weight matrices begins first. A model agrees if in each stack the blocks begin in the order
of their indices, its stem begins before them, its head behind them, and what feeds a block right before it.
One that looks at values may not run; its layers are found all the same. Each result is a line of the file
`--results`; what is in it already is not done again.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from layer_inputs import inputs_of
from torch import nn

from hf_lpwd.layer_order import first_uses, made_up_inputs
from hf_lpwd.layers import LayerMap, layer_index_map

_DEPTH = re.compile(r"(?:num_)?(?:hidden_|encoder_|decoder_)?layers?|n_layers?|depth")
_MOST_LAYERS = 3

Inputs = Callable[[nn.Module], Iterable[dict[str, Any]]]
#: Name, family, and what builds it: the first that runs counts.
Case = tuple[str, str, list[Callable[[], nn.Module]]]

#: Classes -> what their configurations lack.
_SETTINGS: dict[str, dict[str, Any]] = {
    "Autoformer.*|Informer.*|TimeSeriesTransformer.*": {"prediction_length": 4},
    "BeitForSemanticSegmentation": {"out_indices": [3, 5, 7, 11]},
    "BridgeTowerForContrastiveLearning": {"contrastive_hidden_size": 512, "logit_scale_init_value": 2.0},
    "(ConvNext|FocalNet).*Backbone": {"hidden_sizes": [96, 192, 384, 768]},
    "DeepseekV2.*": {"num_experts_per_tok": 2},
    "Esm.*": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "HunYuan.*": {"head_dim": 128},
    "Nemotron(For.*|Model)": {"num_key_value_heads": 8, "head_dim": 128},
}


def timm_models(only: str = "") -> Iterator[Case]:
    """All of timm's architectures, or those of the families that match; a family is a file."""
    for name in timm.list_models():
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        if re.search(only, family):
            yield name, family, [partial(timm.create_model, name, pretrained=False, num_classes=10)]


def transformers_models(only: str = "") -> Iterator[Case]:
    """All model classes of transformers that have a configuration; a family is a folder."""
    for family in pkgutil.iter_modules(transformers.models.__path__):
        if not re.search(only, family.name):
            continue
        for file in pkgutil.iter_modules([f"{transformers.models.__path__[0]}/{family.name}"]):
            if not file.name.startswith("modeling_"):
                continue
            try:
                module = importlib.import_module(f"transformers.models.{family.name}.{file.name}")
            except ImportError as error:  # needs a package that is not installed
                yield file.name, family.name, [partial(_fail, error)]
                continue
            for name in getattr(module, "__all__", []):
                cls = getattr(module, name)
                if (
                    inspect.isclass(cls)
                    and issubclass(cls, transformers.PreTrainedModel)
                    and cls.__module__ == module.__name__
                    and not re.search(r"Pre[Tt]rained", name)
                    and cls.config_class is not None
                ):
                    yield name, family.name, _builders(cls)


def _fail(error: Exception) -> nn.Module:
    raise error


def _builders(cls: type[nn.Module]) -> list[Callable[[], nn.Module]]:
    """With three layers a stack, and with all where a configuration cannot be cut."""
    settings = next((more for names, more in _SETTINGS.items() if re.fullmatch(names, cls.__name__)), {})
    return [
        lambda: cls(_cut(cls.config_class(**settings))),
        lambda: cls(cls.config_class(**settings)),
    ]


def _cut(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    """Leaves three layers in each stack of a configuration."""
    settings = vars(config)
    depths = {
        key: value
        for key, value in settings.items()
        if _DEPTH.fullmatch(key) and type(value) is int and value > _MOST_LAYERS
    }
    for key, value in list(settings.items()):
        if key in depths:
            settings[key] = _MOST_LAYERS
        elif isinstance(value, (list, tuple)) and len(value) in depths.values():
            settings[key] = value[:_MOST_LAYERS]
        elif isinstance(value, transformers.PretrainedConfig):
            _cut(value)
    return config


def first_calls(model: nn.Module, candidates: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Path of each module that runs -> rank of its first call.

    Raises:
        Exception: What the last of the inputs led to.
    """
    rank: dict[str, int] = {}

    def note(path: str) -> None:
        # Whatever a hook returns would take the place of the input.
        rank.setdefault(path, len(rank))

    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: note(path))
    error: Exception = ValueError("its inputs are not known")
    for inputs in candidates:
        rank.clear()
        try:
            first_uses(model, inputs)
            return rank
        except Exception as why:
            error = why
    raise error


def disagreements(model: nn.Module, layer_map: LayerMap, rank: dict[str, int]) -> list[str]:
    """Names the blocks and the modules with matrices whose place contradicts the order of the calls."""
    blocks: dict[str, dict[str, int]] = {stack: {} for stack in layer_map.num_layers_by_stack}
    for place in layer_map.places.values():
        if place.module.startswith("block "):
            blocks[place.stack][place.module.removeprefix("block ")] = place.layer
    found = []
    starts = {}
    for stack, layers in blocks.items():
        ran = sorted((rank[path], layer, path) for path, layer in layers.items() if path in rank)
        starts[stack] = [start for start, _, _ in ran]
        found += [path for (_, a, _), (_, b, path) in pairwise(ran) if b < a]
    names_of = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        path, place = name.rpartition(".")[0], layer_map.places[name]
        n = layer_map.num_layers_by_stack[place.stack]
        is_tied = names_of[id(parameter)] > 1
        if place.module.startswith("block ") or is_tied or parameter.ndim < 2 or path not in rank:
            continue
        if len(starts[place.stack]) < n - 1:
            continue
        before = sum(start < rank[path] for start in starts[place.stack])
        low, high = {0: (0, 0), n: (n - 1, n - 1)}.get(place.layer, (place.layer - 1, place.layer))
        if not low <= before <= high:
            found.append(name)
    return found


class TookTooLong(BaseException):
    """A model's time is over; no `except Exception` of a library catches it."""


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def check(builders: list[Callable[[], nn.Module]], seconds: int = 60) -> tuple[str, list[str]]:
    """Builds a model and tells how it fares, with what disagrees or why it does not run.

    Args:
        builders: Ways to build it; the first that runs counts, and of others the first that builds is tried
            with more inputs than the package makes up.
        seconds: Of the processor, at most.
    """

    def stop(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        outcome = "not built", ["nothing builds it"]
        inputs = inputs_of
        for build in builders:
            outcome = _check(build, inputs)
            if not outcome[0].startswith("not"):
                break
            if outcome[0] != "not built":
                inputs = made_up_inputs
        return outcome
    except TookTooLong:
        return "took too long", [f"more than {seconds} seconds"]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _check(build: Callable[[], nn.Module], candidates: Inputs) -> tuple[str, list[str]]:
    try:
        with torch.device("meta"):
            model = build()
    except Exception as error:
        return "not built", [_in_a_line(error)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            layer_map = layer_index_map(model)
        except ValueError as error:
            return "no layers found", [str(error)]
    told = [str(w.message) for w in caught if "structure does not tell" in str(w.message)]
    try:
        rank = first_calls(model, candidates(model))
    except Exception as error:
        return ("not run, with a warning" if told else "not run"), [*told, _in_a_line(error)]
    faults = disagreements(model, layer_map, rank)
    return ("disagrees" if faults else "agrees"), faults


def main() -> None:
    """Prints what is not in agreement, model by model, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=["timm", "transformers"])
    parser.add_argument("--only", default="", help="regular expression of families")
    parser.add_argument("--results", type=Path, help="file of JSON lines; models in it are not run again")
    parser.add_argument("--seconds", type=int, default=60, help="of the processor, for each model")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = args.results or Path(f"check_layers_{args.library}.jsonl")
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(line["family"], line["model"]): line for line in map(json.loads, lines)}
    models = timm_models if args.library == "timm" else transformers_models
    with results.open("a") as file:
        for name, family, builders in models(args.only):
            if (family, name) in done:
                continue
            status, about = check(builders, args.seconds)
            line = {"family": family, "model": name, "status": status, "about": about}
            done[family, name] = line
            print(json.dumps(line), file=file, flush=True)
            if status not in ("agrees", "not run"):
                print(f"{family} {name}: {status}: {', '.join(about[:4])}"[:300], flush=True)
    counts = Counter(line["status"] for line in done.values())
    version = {"timm": timm.__version__, "transformers": transformers.__version__}[args.library]
    print(f"{args.library} {version}, torch {torch.__version__}, {date.today()}:")
    print(f"{counts.total()} models of {len({family for family, _ in done})} families: ", end="")
    print(", ".join(f"{n} {what}" for what, n in counts.most_common()))


if __name__ == "__main__":
    main()
