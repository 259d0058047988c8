"""The command `hf-lpwd`. Nothing heavy is imported before it is known what is to be done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from hf_lpwd.messages import error_words, refuse, unknown

#: Command -> the module whose `main(argv)` runs it, and what it does.
_COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("commands.train", "fine-tune an image classifier, or train one from scratch"),
    "predict": ("commands.predict", "classify images with a trained run, as CSV"),
    "evaluate": ("commands.evaluate", "measure a trained run on a labelled dataset, class by class"),
    "explain": ("commands.explain", "show a model's layers, their decay rates, and what does not decay"),
    "audit": ("commands.audit", "show what the Trainer, timm and this package decay of a model, measured"),
    "sweep": ("commands.sweep", "the former name of study run"),
    "study": ("commands.study", "compare weight decays on your task: init, plan, register, run, report"),
    "report": ("commands.report", "write the report of a study: a page, tables and figures"),
    "diagnose": ("commands.diagnose", "measure what decay does: opposing-penalty, shrink, equivalence"),
    "card": ("commands.card", "write a run's card with means and intervals over several seeds"),
    "push": ("commands.push", "upload a run to the Hub"),
    "space": ("commands.space", "write a Gradio app of a run, to try it in the browser or as a Space"),
}


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in _COMMANDS.items())
    return (
        "usage: hf-lpwd COMMAND ...\n\n"
        "Layer-wise pre-weight decay for transformers and timm models.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  -h, --help   this text; 'hf-lpwd COMMAND --help' for a command's flags\n"
        "  --traceback  with a command: where an error comes from, instead of one line\n"
        "  --version    the version\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `argv` or `sys.argv[1:]`; returns the exit code of `run_command`, or 141 if a pipe closes."""
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads the rest; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        from hf_lpwd import __version__

        print(__version__)
        return 0
    if command not in _COMMANDS:
        return refuse("hf-lpwd", unknown("command", command, _COMMANDS))
    return run_command(command, rest)


def run_command(command: str, argv: Sequence[str], prog: str | None = None) -> int:
    """Runs one command; an error is one line on standard error, unless `--traceback` is in `argv`.

    Returns:
        The exit code: that of the command, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    named = {} if prog is None else {"prog": prog}

    def run(rest: Sequence[str]) -> int:
        return import_module(f"hf_lpwd.{_COMMANDS[command][0]}").main(rest, **named)

    return errors_in_one_line(run, argv, prog or f"hf-lpwd {command}")


def errors_in_one_line(run: Callable[[Sequence[str]], int], argv: Sequence[str], prog: str) -> int:
    """Calls `run` with a command line without `--traceback`; see `run_command`."""
    rest = [argument for argument in argv if argument != "--traceback"]
    try:
        return run(rest)
    except KeyboardInterrupt:
        print(f"{prog}: stopped by SIGINT", file=sys.stderr)
        return 130
    except Exception as error:
        if len(rest) < len(argv) or isinstance(error, BrokenPipeError):
            raise
        return refuse(prog, error_words(error))
