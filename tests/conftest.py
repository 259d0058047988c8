"""Settings that have to stand before any library is imported."""

from __future__ import annotations

import os

import pytest

# Nothing may ask the Hub, and two test workers share two cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def hub(monkeypatch):
    """A Hub on loopback that this process uses, see hub_server.py."""
    from hub_server import Hub, use_here
    from huggingface_hub import close_session

    with Hub() as server:
        use_here(server, monkeypatch)
        yield server
        close_session()
