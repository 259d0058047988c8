"""What is read off parameters, whatever wraps or partitions them: plain names, full shapes, widths."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

_WRAPPERS = re.compile(
    r"^(?:module\.|base_model\.model\.|timm_model\.)+"
    r"|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|modules_to_save\.\w+)\."
)
# Attributes of a layer: the size of the features that it takes, and that it makes.
_TAKES = ("in_features", "in_channels", "num_embeddings", "nx")
_MAKES = ("out_features", "out_channels", "embedding_dim", "nf")


def unwrap_name(name: str) -> str:
    """Returns a name without the prefixes of DDP, `torch.compile`, FSDP, PEFT and timm's wrapper."""
    while (shorter := _WRAPPERS.sub("", name)) != name:
        name = shorter
    return name


def is_partitioned(parameter: Tensor) -> bool:
    """Tells whether DeepSpeed's ZeRO 3 has left an empty tensor in place of a parameter's values."""
    return hasattr(parameter, "ds_shape")


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter, also if it is partitioned; FSDP2's tensors know theirs."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole(tensor: Any) -> Tensor:
    """Returns all of a tensor, also if FSDP2 has sharded it."""
    return tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def in_and_out(module: nn.Module) -> tuple[int | None, int | None]:
    """What a module's first layer takes and its last one makes, in the order of registration.

    A norm takes and makes its own size; None where there is neither a layer nor a norm.
    """
    layers = [
        inner
        for inner in module.modules()
        if any(len(full_shape(parameter)) >= 2 for parameter in inner.parameters(recurse=False))
    ]
    takes = [size for layer in layers if (size := _size(layer, _TAKES)) is not None]
    makes = [size for layer in layers if (size := _size(layer, _MAKES)) is not None]
    if takes and makes:
        return takes[0], makes[-1]
    sizes = [full_shape(parameter)[0] for parameter in module.parameters() if len(full_shape(parameter)) == 1]
    return (sizes[0], sizes[-1]) if sizes else (None, None)


def block_widths(block: nn.Module) -> set[int]:
    """Sizes of the features between a block's layers: of its norms, its first and its last layer."""
    norms = {
        full_shape(parameter)[0]
        for name, parameter in block.named_parameters()
        if len(full_shape(parameter)) == 1 and name.endswith("weight")
    }
    return norms | {size for size in in_and_out(block) if size is not None}


def has_matrices(module: nn.Module) -> bool:
    """Whether a module has weights of two dimensions or more, which decay."""
    return any(sum(size > 1 for size in full_shape(parameter)) >= 2 for parameter in module.parameters())


def _size(layer: nn.Module, names: tuple[str, ...]) -> int | None:
    sizes = (getattr(layer, name, None) for name in names)
    return next((size for size in sizes if isinstance(size, int)), None)
