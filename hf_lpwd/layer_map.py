"""`LayerMap`, and what is read off a parameter whatever wraps or partitions it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby

from torch import Tensor, nn

_WRAPPERS = re.compile(
    r"^(?:module\.|base_model\.model\.|timm_model\.)+"
    r"|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|modules_to_save\.\w+)\."
)


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


@dataclass(frozen=True)
class LayerMap:
    """The layer index of each parameter of a model.

    Towers, and an encoder and its decoder, are separate stacks: each counts from 0 and has its own n. A model
    that is one stack calls it ``""``.

    Attributes:
        index_by_name: Parameter name -> index, 0 to n of its stack.
        num_layers_by_stack: Stack -> n, the index of its head.
        stack_by_name: Parameter name -> stack.
        reason_by_name: Parameter name -> short reason, such as ``"block vit.layers.3"``.
        size_by_name: Parameter name -> number of scalars.
    """

    index_by_name: dict[str, int]
    num_layers_by_stack: dict[str, int]
    stack_by_name: dict[str, str]
    reason_by_name: dict[str, str] = field(default_factory=dict)
    size_by_name: dict[str, int] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """n, the index of the head; the largest where there are several stacks."""
        return max(self.num_layers_by_stack.values())

    def __str__(self) -> str:
        rows = [("layer", "what", "parameters")]
        for stack in self.num_layers_by_stack:
            names = [name for name in self.index_by_name if self.stack_by_name[name] == stack]
            names.sort(key=self.index_by_name.__getitem__)
            for index, layer in groupby(names, key=self.index_by_name.__getitem__):
                members = list(layer)
                what = ", ".join(dict.fromkeys(self.reason_by_name.get(name, name) for name in members))
                size = sum(self.size_by_name.get(name, 0) for name in members)
                rows.append((f"{stack} {index}".strip(), what, f"{size:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{layer:<{widths[0]}}  {what:<{widths[1]}}  {size:>{widths[2]}}" for layer, what, size in rows
        )
