"""What is wrong with the files of a checkpoint, if anything is."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import safe_globals

from hf_lpwd.files import SAVED_FILES

# Classes that DeepSpeed pickles in its model and optimizer states.
_DEEPSPEED_STATES = ("_model_states.pt", "_optim_states.pt")
_DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
# What FSDP's sharded checkpoints list in a pickle that torch reads without a guard.
_SHARD_LIST = ".metadata"
_OF_SHARDS = "torch.distributed.checkpoint"
_SHARD_LIST_CLASSES = {
    *(f"{_OF_SHARDS}.metadata.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *(f"{_OF_SHARDS}.metadata.{name}" for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    *(f"{_OF_SHARDS}.metadata.{name}StorageMetadata" for name in ("Bytes", "Chunk", "Tensor")),
    f"{_OF_SHARDS}.filesystem._StorageInfo",
    *("collections.OrderedDict", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("torch.Size", "torch.serialization._get_layout"),
}


def why_corrupt(checkpoint: str | os.PathLike[str]) -> str | None:
    """Says what is wrong with a checkpoint's files, or returns None if it is complete and safe to load.

    A checkpoint of this package names its files, their sizes and checksums. The stock Trainer writes its
    state last, so that the others are there if this one is. In both, safetensors, pickled and JSON files are
    checked.
    """
    folder = Path(checkpoint)
    name = SAVED_FILES
    try:
        if (folder / SAVED_FILES).exists():
            saved = json.loads((folder / SAVED_FILES).read_text(encoding="utf-8"))
        else:
            saved = dict.fromkeys(_of_stock_trainer(folder))
        for name, as_saved in saved.items():
            if (fault := _change(folder / name, as_saved)) is not None:
                return f"{name} has {fault}"
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            check = _CHECKS.get(_SHARD_LIST if path.name.endswith(_SHARD_LIST) else path.suffix)
            if path.is_file() and check and name != TRAINING_ARGS_NAME:
                check(path)
    except FileNotFoundError:
        return f"{name} is missing"
    except Exception as error:  # a corrupt pickle may raise nearly anything
        return f"{name} cannot be read ({' '.join(str(error).split())})"
    return None


def as_saved(path: Path) -> dict[str, Any]:
    """Returns what tells later whether a file is as it was saved; 0.2 seconds for a GB in the page cache."""
    return {"bytes": path.stat().st_size, "crc32": _checksum(path)}


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def _change(path: Path, saved: Any) -> str | None:
    """How a file differs from what was saved: earlier releases noted the size alone, Trainer nothing."""
    size, checksum = saved, None
    if isinstance(saved, dict):
        size, checksum = saved.get("bytes"), saved.get("crc32")
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found} bytes instead of {size}"
    if checksum is not None and checksum != (now := _checksum(path)):
        return f"the checksum {now} instead of {checksum}: its contents have changed"
    return None


def _of_stock_trainer(folder: Path) -> list[str]:
    """Names what must be there where no list was saved."""
    names = [TRAINER_STATE_NAME]
    if not any(folder.glob("*model*")) and not any(folder.glob("global_step*")):
        names.append("model.safetensors")
    for index in folder.glob("*.index.json"):
        names += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    states = ("optimizer.pt", "scheduler.pt")
    if any((folder / name).exists() for name in states):
        names += states
        if not any(folder.glob("rng_state*.pth")):
            names.append("rng_state.pth")
    return names


def _check_pickle(path: Path) -> None:
    """Raises an error unless a file of `torch.save` is complete and holds nothing but tensors and values.

    `torch.load` with ``weights_only=True``, as Trainer and accelerate call it, refuses the same; here it is
    known before anything is loaded. DeepSpeed unpickles its own files without that guard.
    """
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"its part {bad} is corrupt")
    with safe_globals():
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if path.name.endswith(_DEEPSPEED_STATES):
            names = [name for name in names if name not in _DEEPSPEED_CLASSES]
        if names:
            raise ValueError(f"it holds {', '.join(sorted(names))}, which may run code when it is loaded")
        if not path.name.endswith(_DEEPSPEED_STATES):
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)


class _ShardListUnpickler(pickle.Unpickler):
    """Makes nothing but the classes that torch writes into the list of a sharded checkpoint."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _SHARD_LIST_CLASSES and not (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which may run code when it is loaded")
        return super().find_class(module, name)


def _check_shards(path: Path) -> None:
    """Raises an error unless the list of a sharded checkpoint, and what torch unpickles by it, are safe.

    torch reads tensors with ``weights_only=True``, but neither the list nor the values that are no tensors,
    such as an optimizer's learning rates.
    """
    with path.open("rb") as file:
        metadata = _ShardListUnpickler(file).load()
    for index, place in metadata.storage_data.items():
        if type(metadata.state_dict_metadata.get(index.fqn)).__name__ == "BytesStorageMetadata":
            with (path.parent / place.relative_path).open("rb") as shard, safe_globals():
                shard.seek(place.offset)
                torch.load(io.BytesIO(shard.read(place.length)), weights_only=True)


# End of a file's name -> what raises an error if the file is corrupt or unsafe.
_CHECKS: dict[str, Callable[[Path], object]] = {
    ".safetensors": lambda path: safe_open(path, "pt"),
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl"), _check_pickle),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    _SHARD_LIST: _check_shards,
}
