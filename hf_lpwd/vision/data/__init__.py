"""Images: where they come from, and how they reach the model."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # On demand, as `datasets` takes seconds to import, and the arguments live in this package too.
    if name == "load_splits":
        from hf_lpwd.vision.data.splits import load_splits

        return load_splits
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
