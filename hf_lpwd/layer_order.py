"""The order in which a model uses its parameters, seen in a forward pass on the meta device.

Asked only where the module tree does not tell. Nothing is computed: weights and inputs have shapes alone, the
model's own weights, buffers, mode and random numbers stay as they are.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental import _config as fx_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_lpwd.parameters import has_matrices, is_partitioned

_TOKENS, _SAMPLES, _FRAMES = 16, 16_000, 3_000


class Order:
    """The order in which a model's modules run: one forward pass, made when it is first asked."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: Modules whose place is unknown -> the place that was assumed.
        self.unknown: dict[str, str] = {}

    @cached_property
    def _rank(self) -> dict[int, int]:
        return running_order(self.model)

    def first_use(self, path: str) -> int | None:
        """Rank of the first use of a parameter, or of those of a module."""
        owner, _, name = path.rpartition(".")
        found = getattr(self.model.get_submodule(owner), name)
        parameters = [found] if isinstance(found, nn.Parameter) else found.parameters()
        return min((self._rank[id(p)] for p in parameters if id(p) in self._rank), default=None)

    def blocks_before(self, path: str, blocks: list[str]) -> int | None:
        """Number of blocks that begin before a module or parameter does; None if that is not known."""
        start = self.first_use(path)
        starts = [self.first_use(block) for block in blocks]
        if start is None or None in starts:
            return None
        return sum(rank < start for rank in starts if rank is not None)

    def taken_for(self, path: str, what: str) -> None:
        """Notes that a module's place could not be found."""
        module = self.model.get_submodule(path)
        if has_matrices(module) and any(p.requires_grad for p in module.parameters()):
            self.unknown[path] = what

    def warn(self) -> None:
        """Names the modules whose place could not be found."""
        for path, what in self.unknown.items():
            name = next(iter(dict(self.model.get_submodule(path).named_parameters(prefix=path))))
            warnings.warn(
                f"the model's structure does not tell when {name!r} is used, so it is taken for the {what}; "
                "rules given as layer_map decide otherwise",
                stacklevel=2,
            )


def running_order(model: nn.Module) -> dict[int, int]:
    """As `first_uses`; empty if inputs are unknown, `forward` looks at values, or weights are distributed."""
    if any(is_partitioned(p) or hasattr(p, "full_tensor") for p in model.parameters()):
        return {}
    for inputs in made_up_inputs(model):
        with contextlib.suppress(Exception):  # what made-up inputs lead to
            return first_uses(model, inputs)
    return {}


def first_uses(model: nn.Module, inputs: dict[str, Any]) -> dict[int, int]:
    """Ranks a model's parameters by their first use in a forward pass on the meta device.

    Returns:
        ``id(parameter)`` -> rank of its first use. The model stays as it is.
    """
    model = _without_wrappers(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    copies = {id(p): torch.empty_like(p, device="meta", requires_grad=False) for p in parameters.values()}
    state = {name: copies[id(p)] for name, p in parameters.items()}
    state |= {name: buffer.to("meta") for name, buffer in model.named_buffers(remove_duplicate=False)}
    modes = {module: module.training for module in model.modules()}
    seen = _FirstUse()
    try:
        model.eval()
        with (
            warnings.catch_warnings(action="ignore"),
            torch.compiler.set_stance("force_eager"),
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            torch.no_grad(),
            # Where a mask selects, everything is selected.
            fx_config.patch(meta_nonzero_assume_all_nonzero=True),  # type: ignore[attr-defined]
            seen,
        ):
            functional_call(model, state, (), inputs, strict=False)
    finally:
        for module, training in modes.items():
            module.training = training
    return {key: seen.rank[id(copy)] for key, copy in copies.items() if id(copy) in seen.rank}


def _without_wrappers(model: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    return model


class _FirstUse(TorchDispatchMode):
    """Ranks the tensors that operations see, by `id`."""

    def __init__(self) -> None:
        super().__init__()
        self.rank: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.rank.setdefault(id(leaf), len(self.rank))
        if func is torch.ops.aten._local_scalar_dense.default:
            # Whoever asks for a value, often in an assertion, is told 1.
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten._grouped_mm.default:
            # Of a mixture's experts: on the meta device it takes half precision alone.
            return args[0].new_empty(*args[0].shape[:-1], args[1].shape[-1])
        return func(*args, **(kwargs or {}))


def made_up_inputs(model: nn.Module) -> Iterator[dict[str, Tensor | bool]]:
    """Arguments of `forward`, on the meta device: the fewest first.

    Made up from what transformers' and timm's models say of themselves (`config`, `main_input_name`,
    `pretrained_cfg`); a model around one of these has to give its own inputs the same names, or to take only
    one.
    """
    model = _without_wrappers(model)
    signature = inspect.signature(model.forward).parameters.values()
    known = _inputs_by_name(model)
    required = [p.name for p in signature if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    described = next((m for m in model.modules() if hasattr(m, "main_input_name")), None)
    main = getattr(described, "main_input_name", "pixel_values")
    named = [p.name for p in signature if p.name in known]
    without_cache = {"use_cache": False} if any(p.name == "use_cache" for p in signature) else {}
    if len(required) == 1 and required[0] not in known:
        yield {required[0]: known[main]} if main in known else {}
        return
    if not set(required) <= known.keys():
        return
    for names in ([main], [main, "decoder_input_ids"], named):
        if set(names) <= set(named):
            yield {name: known[name] for name in dict.fromkeys([*required, *names])} | without_cache


def _inputs_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Inputs as transformers' models call them."""
    channels, height, width = _image_size(model)
    choices = (2,) if type(model).__name__.endswith("MultipleChoice") else ()
    ids = torch.ones(1, *choices, _TOKENS, dtype=torch.long, device="meta")
    bins = setting(model, "num_mel_bins", "feature_size", default=80)
    return {
        "input_ids": ids,
        "attention_mask": ids,
        "decoder_input_ids": ids,
        "pixel_values": torch.empty(1, channels, height, width, device="meta"),
        "input_values": torch.empty(1, _SAMPLES, device="meta"),
        "input_features": torch.empty(1, bins, _FRAMES, device="meta"),
    }


def _image_size(model: nn.Module) -> tuple[int, int, int]:
    for module in model.modules():
        if isinstance(size := (getattr(module, "pretrained_cfg", None) or {}).get("input_size"), tuple):
            return size
    size = setting(model, "image_size", default=224)
    return setting(model, "num_channels", default=3), size, size


def setting(model: nn.Module, *names: str, default: int) -> int:
    """A number of the first configuration in the model, or of one inside of it, that has it."""
    for module in model.modules():
        if config := getattr(module, "config", None):
            for one in (config, *vars(config).values()):
                for name in names:
                    value = getattr(one, name, None)
                    value = value[0] if isinstance(value, (list, tuple)) and value else value
                    if isinstance(value, int):
                        return value
    return default
