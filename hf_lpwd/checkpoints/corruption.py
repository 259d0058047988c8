"""What is wrong with the files of a checkpoint, if anything is."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from hf_lpwd.files import FILE_SIZES


def damage(checkpoint: str) -> str | None:
    """Says what is wrong with a checkpoint's files, or returns None if it is whole.

    A checkpoint of this package names its files and their sizes. The stock Trainer writes its state last, so
    that the others are there if this one is. In both, safetensors, zip and JSON files are checked.
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
            if path.is_file() and path.suffix in _CHECKS:
                _CHECKS[path.suffix](path)
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, SafetensorError) as error:
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


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"its part {bad} is damaged")


def _check_safetensors(path: Path) -> None:
    with safe_open(path, "pt"):
        pass


def _check_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


_CHECKS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _check_safetensors,
    ".pt": _check_zip,
    ".pth": _check_zip,
    ".bin": _check_zip,
    ".json": _check_json,
}
