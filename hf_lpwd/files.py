"""Writing files complete or not at all, and the names of those that several modules know."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

#: In each checkpoint: size and checksum of every file that was saved, by name.
SAVED_FILES = "checkpoint_files.json"
#: In the folder of a run and in each of its checkpoints: the settings that decide what the run computes.
RECORD = "run_settings.json"
#: In the folder of a run: the facts of its first paragraph.
RUN_FACTS = "run_facts.json"
#: In the folder of a finished run: what its card says, as JSON.
FACTS = "card.json"
_TEMPORARY = ".part"


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under a temporary name in its folder (made if missing), then renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        set_mode(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, complete or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def set_mode(path: Path) -> None:
    """Gives a file the mode of new files; safetensors and tempfile make files unreadable to others."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of writes that were killed. No process may be writing into the folder."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)
