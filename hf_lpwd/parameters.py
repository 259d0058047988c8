"""What is read off a parameter, whatever wraps or partitions it: its plain name and its full shape."""

from __future__ import annotations

import re
from typing import Any

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


def whole(tensor: Any) -> Tensor:
    """Returns all of a tensor, also if FSDP2 has sharded it."""
    return tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
