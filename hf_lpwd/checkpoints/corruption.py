"""What is wrong with the files of a checkpoint, if anything is."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import safe_globals

from hf_lpwd.files import FILE_SIZES

# What DeepSpeed pickles beside tensors in its model and optimizer states.
_DEEPSPEED_STATES = ("_model_states.pt", "_optim_states.pt")
_DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def damage(checkpoint: str | os.PathLike[str]) -> str | None:
    """Says what is wrong with a checkpoint's files, or returns None if it is complete and safe to load.

    A checkpoint of this package names its files and their sizes. The stock Trainer writes its state last, so
    that the others are there if this one is. In both, safetensors, pickled and JSON files are checked. FSDP's
    sharded files are not: torch unpickles them.
    """
    folder = Path(checkpoint)
    name = FILE_SIZES
    try:
        recorded = (folder / FILE_SIZES).exists()
        sizes = _sizes(folder / FILE_SIZES) if recorded else dict.fromkeys(_of_stock_trainer(folder))
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if size is not None and found != size:
                return f"{name} has {found} bytes instead of {size}"
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and path.suffix in _CHECKS and name != TRAINING_ARGS_NAME:
                _CHECKS[path.suffix](path)
    except FileNotFoundError:
        return f"{name} is missing"
    except (
        *(OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError),
        *(zipfile.BadZipFile, SafetensorError),
    ) as error:
        return f"{name} cannot be read ({' '.join(str(error).split())})"
    return None


def _sizes(path: Path) -> dict[str, int | None]:
    sizes = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(sizes, dict):
        raise ValueError("not a JSON object")
    return sizes


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


def _check_safetensors(path: Path) -> None:
    with safe_open(path, "pt"):
        pass


def _check_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


_CHECKS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _check_safetensors,
    ".pt": _check_pickle,
    ".pth": _check_pickle,
    ".bin": _check_pickle,
    ".pkl": _check_pickle,
    ".json": _check_json,
}
