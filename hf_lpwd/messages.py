"""How errors are said: with the nearest right name, and at the command line in one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable
from typing import NoReturn


class BadInputError(ValueError):
    """What the user gave is at fault, not the program."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns ``unknown <what> '<name>'``, with the nearest of `known` if one is near."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"unknown {what} {str(name)!r}" + (f": did you mean {nearest[0]!r}?" if nearest else "")


def hide_tokens(text: str) -> str:
    """Returns `text` with every token for the Hub in it as ``hf_...``."""
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)


def refuse(prog: str, message: object) -> int:
    """Prints a program's error in one line on standard error, and returns the exit code of bad input, 2."""
    print(f"{prog}: error: {hide_tokens(' '.join(str(message).split()))}", file=sys.stderr)
    return 2


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        raise SystemExit(refuse(self.prog, message))
