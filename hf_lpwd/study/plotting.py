"""What the figures of a report share: how one is made and saved, and how methods are told apart."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_lpwd.study.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_MARKERS = "osD^vP*Xh<>p"
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Figure:
    """A figure in two formats.

    Attributes:
        name: File name without extension.
        title: A heading.
        alt: What it shows, in words.
        png: PNG file.
        svg: SVG file.
    """

    name: str
    title: str
    alt: str
    png: bytes
    svg: bytes


@contextmanager
def new_canvas(width: float, height: float) -> Iterator[Canvas]:
    """A white canvas, in inches, whose text is text and whose files depend on what is drawn alone."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "hf-lpwd", "font.size": 10}):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        canvas.patch.set_facecolor("white")
        yield canvas


def saved(canvas: Canvas, name: str, title: str, alt: str) -> Figure:
    """Saves a canvas as a `Figure`."""
    files = []
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, **options)
        files.append(buffer.getvalue())
    return Figure(name, title, alt, *files)


def style(number: int) -> dict[str, Any]:
    """Methods differ in colour, marker and line, so that colour is not needed to tell them apart."""
    return {
        "color": f"C{number % 10}",
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
        "markersize": 5,
    }


def percent(estimate: Estimate) -> tuple[float, float, float]:
    """Value and bounds in percent, or points."""
    return 100.0 * estimate.value, 100.0 * estimate.low, 100.0 * estimate.high
