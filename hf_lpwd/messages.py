"""How errors are said: with the nearest right name, and at the command line in one line."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

from hf_lpwd.files import write_json


class BadInputError(ValueError):
    """What the user gave is at fault, not the program."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns ``unknown <what> '<name>'``, with the nearest of `known` if one is near."""
    # Dashes that all flags have make none of them nearer.
    by_word = {text.lstrip("-"): text for text in known}
    nearest = difflib.get_close_matches(str(name).lstrip("-"), by_word, n=1, cutoff=0.6)
    return f"unknown {what} {str(name)!r}" + (f": did you mean {by_word[nearest[0]]!r}?" if nearest else "")


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns ``"1 seed"``, ``"2 seeds"``; `many` is `one` with an s by default, or ``"classes have"``."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def listed(names: Sequence[str], most: int) -> str:
    """Returns ``"a, b"``; ``"a, b and 3 more"`` if there are more than `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def value_range(values: Iterable[float], digits: int = 6) -> str:
    """Returns the smallest and the largest of some numbers: ``"0.1"``, ``"0.1 to 0.3"``; ``""`` of none."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(f"{value:.{digits}g}" for value in [*ordered[:1], *ordered[-1:]]))


def error_words(error: Exception) -> str:
    """Returns an error in one line of under 300 characters: a refusal as it is, another with its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, BadInputError):
        return text
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror} ({type(error).__name__})"
    if not isinstance(error, (ValueError, ImportError)):
        text = f"{type(error).__name__}: {text}"
    return f"{text if len(text) < 240 else text[:237] + '...'} (--traceback shows where)"


def first_line(error: BaseException, most: int = 150) -> str:
    """Returns the first line of an error's text, cut between words; its type if it has no text."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= most else line[:most].rpartition(" ")[0] + "..."


def hide_tokens(text: str) -> str:
    """Returns `text` with every token for the Hub in it as ``hf_...``."""
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)


def escaped(text: object) -> str:
    r"""Returns text with characters that cannot be printed as Python writes them.

    Example:
        >>> print(escaped("a\nb"))
        a\nb
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))


def printable(text: object) -> str:
    """Returns text on one line, without tokens and without characters that command a terminal."""
    line = " ".join(str(text).split())
    return hide_tokens("".join(character if character.isprintable() else "?" for character in line))


def refuse(prog: str, message: object) -> int:
    """Prints a program's error in one line on standard error, and returns the exit code of bad input, 2.

    Where torchrun or accelerate started several processes, the first that has an error says it; the launcher
    repeats it at the end of its own report.
    """
    line = f"{prog}: error: {printable(message)}"
    if _is_first_to_say(line):
        say(line)
    return 2


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line, `escaped`, by default on standard error, above the progress bars that may be there."""
    line = escaped(line)
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=file or sys.stderr)
    else:
        print(line, file=file or sys.stderr)


@contextmanager
def warnings_once(write: Callable[[str], object]) -> Iterator[None]:
    """Passes each warning that this package logs to `write`, once, and to no other handler."""
    said: set[str] = set()

    def emit(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if line not in said:
            said.add(line)
            write(line)
        return False

    logger, handler = logging.getLogger("hf_lpwd"), logging.Handler(logging.WARNING)
    handler.addFilter(emit)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _is_first_to_say(line: str) -> bool:
    # Where torchrun looks for a process's error; ``attempt_0/RANK/error.json`` in a folder of this launch.
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    try:
        launch = Path(error_file).parents[1]
        # "Connection closed by peer" is what follows where another process has ended with an error.
        if "by peer" in line and any(launch.glob("said_*")):
            return False
        (launch / f"said_{zlib.crc32(line.encode()):08x}").touch(exist_ok=False)
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        write_json(error_file, {"message": {"message": line, "extraInfo": extra}})
    except FileExistsError:
        return False
    except (OSError, IndexError):
        pass
    return True


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2; the nearest flag is named for one that does not exist."""
        flag = re.match(r"unrecognized arguments: .*?(--\w+)", message)
        known = re.findall(r"--\w+", self.format_help())
        near = difflib.get_close_matches(flag[1], known, n=1, cutoff=0.5) if flag else []
        raise SystemExit(refuse(self.prog, message + "".join(f": did you mean {name}?" for name in near)))
