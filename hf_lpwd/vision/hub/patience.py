"""Limits for a Hub that is silent, drips or never ends; `huggingface_hub` itself waits forever."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_lpwd.messages import printable

#: Seconds after which an answer must be complete, counted from the last byte that was sent.
PATIENCE = 120.0
#: Bytes that one answer may have.
LARGEST_ANSWER = 32 * 2**20
#: Seconds that uploads have to end when the process is told to end.
GRACE = 10.0

_uploads = 0


class GaveUpError(ConnectionError):
    """The Hub's answer takes too long or is too large."""


@contextmanager
def patience() -> Iterator[None]:
    """Limits the time and the size of the Hub's answers, and removes escape sequences from its messages.

    Inside, `huggingface_hub` may raise `GaveUpError`. Downloads are not limited, and neither are the uploads
    of hf_xet, which has its own limits.
    """
    from huggingface_hub import get_session

    global _uploads
    client = get_session()
    # No public setting limits a whole answer: timeouts count from byte to byte.
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None and not isinstance(pool._network_backend, _Backend):
            pool._network_backend = _Backend(pool._network_backend)
    timeout, formatwarning = client.timeout, warnings.formatwarning
    handlers = logging.getLogger("huggingface_hub").handlers
    try:
        _uploads += 1
        client.timeout = PATIENCE
        warnings.formatwarning = lambda message, *args: printable(message) + "\n"
        for handler in handlers:
            handler.addFilter(_only_text)
        yield
    finally:
        _uploads -= 1
        client.timeout, warnings.formatwarning = timeout, formatwarning
        for handler in handlers:
            handler.removeFilter(_only_text)


def _only_text(record: logging.LogRecord) -> bool:
    """Takes escape sequences, which may come from the server, out of a log record."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def leave_within_grace(exit_code: int) -> None:
    """Ends the process in `GRACE` seconds if it has not ended by itself.

    Python waits at its end for every thread, and so for a request to a Hub that does not answer.
    """
    timer = threading.Timer(GRACE, _leave, [exit_code])
    timer.daemon = True
    timer.start()


def _leave(exit_code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


class _Around:
    """An object of httpcore, whose attributes this one has too."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Backend(_Around):
    """A network backend with limited connections."""

    def connect_tcp(self, *args: Any, **kwargs: Any) -> _Connection:
        return _Connection(self._inner.connect_tcp(*args, **kwargs))


class _Connection(_Around):
    """A connection on which every answer has to end: in time, and within a number of bytes."""

    _download = False

    def start_tls(self, *args: Any, **kwargs: Any) -> _Connection:
        return _Connection(self._inner.start_tls(*args, **kwargs))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer.startswith((b"GET ", b"HEAD ", b"POST ", b"PUT ")):
            self._download = buffer.startswith(b"GET ") and not buffer.startswith(b"GET /api/")
        self._inner.write(buffer, timeout)
        self._end, self._left = time.monotonic() + PATIENCE, LARGEST_ANSWER

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        try:
            content: bytes = self._inner.read(*args, **kwargs)
        except Exception as error:
            self._check(0, error)
            raise
        self._check(len(content))
        return content

    def _check(self, size: int, error: Exception | None = None) -> None:
        self._left -= size
        if not _uploads or self._download:
            return
        if time.monotonic() > self._end:
            raise GaveUpError(f"no complete answer within {PATIENCE:g} s") from error
        if self._left < 0:
            raise GaveUpError(f"an answer of more than {LARGEST_ANSWER:,} bytes") from error
