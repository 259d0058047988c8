"""How errors are said: with the nearest right name, and at the command line in one line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class BadInputError(ValueError):
    """What the user gave is at fault, not the program."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns ``unknown <what> '<name>'``, with the nearest of `known` if one is near."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"unknown {what} {str(name)!r}" + (f": did you mean {nearest[0]!r}?" if nearest else "")


def refuse(prog: str, message: object) -> int:
    """Prints a program's error in one line on standard error, and returns the exit code of bad input, 2."""
    print(f"{prog}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
