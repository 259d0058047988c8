"""What the figures of a report share: how one is made and saved, and how methods are told apart."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_lpwd.study.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_MARKERS = "osD^vP*Xh<>p"
_LINES = ("-", "--", "-.", ":")
_SCHEMES = (
    "<style>svg{color:#1b1b1b;fill:currentColor}"
    "@media (prefers-color-scheme:dark){svg{color:#e8e8e8}}"
    "@media print{svg{color:#000}}</style>"
)
#: Black that stays black in a dark scheme, for text on a light colour.
INK = "#010101"


@dataclass(frozen=True)
class Figure:
    """A figure in two formats; `name` is that of its files, and `alt` says in words what it shows."""

    name: str
    title: str
    alt: str
    png: bytes
    svg: bytes


@contextmanager
def new_canvas(width: float, height: float) -> Iterator[Canvas]:
    """A canvas, in inches, whose text is text and whose files depend on what is drawn alone.

    A width of 5.2 inches is legible on a telephone.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    look = {"text.parse_math": False, "svg.hashsalt": "hf-lpwd", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context({**look, "axes.facecolor": "none", "legend.framealpha": 0.0}):
        yield Canvas(figsize=(width, height), layout="constrained")


def panels(canvas: Canvas, shown: Sized, **options: Any) -> list[Any]:
    """A panel for each of what is shown, in up to two columns."""
    columns = min(2, len(shown))
    made = canvas.subplots(-(-len(shown) // columns), columns, squeeze=False, **options).flat
    for panel in made[len(shown) :]:
        panel.set_axis_off()
    return list(made[: len(shown)])


def saved(canvas: Canvas, name: str, title: str, alt: str) -> Figure:
    """Saves a canvas as a `Figure`, whose SVG is dark where the reader's colour scheme is."""
    files = []
    for kind, options in (
        ("png", {"dpi": 150, "facecolor": "white"}),
        ("svg", {"metadata": {"Date": None}, "facecolor": "none"}),
    ):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, **options)
        files.append(buffer.getvalue())
    svg = files[1].decode().replace("#000000", "currentColor")
    head, tag, rest = svg.partition("<defs>")
    return Figure(name, title, alt, files[0], f"{head}{_SCHEMES}{tag}{rest}".encode())


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
