"""Widths of modules: the size of the features that they take and make."""

from __future__ import annotations

from torch import nn

from hf_lpwd.parameters import full_shape

_TAKES = ("in_features", "in_channels", "num_embeddings", "nx")
_MAKES = ("out_features", "out_channels", "embedding_dim", "nf")


def in_and_out(module: nn.Module) -> tuple[int | None, int | None]:
    """What a module's first layer takes and its last one makes, in the order of registration.

    A norm takes and makes its own size; None where there is neither a layer nor a norm.
    """
    layers = [inner for inner in module.modules() if _is_layer(inner)]
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


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has weights of its own; a head of one class or a partitioned one does too."""
    return any(len(full_shape(parameter)) >= 2 for parameter in module.parameters(recurse=False))


def _size(layer: nn.Module, names: tuple[str, ...]) -> int | None:
    sizes = (getattr(layer, name, None) for name in names)
    return next((size for size in sizes if isinstance(size, int)), None)
