"""Writing files whole or not at all, and the names of those that several modules know."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

#: In each checkpoint: the size in bytes of every file that was saved, by name.
FILE_SIZES = "checkpoint_files.json"
#: In the folder of a run: the settings that it shares with what it may be resumed as.
RECORD = "run_settings.json"
#: In the folder of a finished run: what its card says, as JSON.
FACTS = "card.json"


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under a temporary name in its folder (made if missing), then renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
