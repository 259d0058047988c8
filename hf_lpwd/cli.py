"""The command `hf-lpwd`. Nothing heavy is imported before it is known what is to be done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from hf_lpwd.messages import BadInputError, refuse, unknown


def train(argv: Sequence[str], prog: str = "hf-lpwd train") -> int:
    """Runs `hf-lpwd train`.

    Args:
        argv: Command line without the program's name.
        prog: The program's name in errors and help.

    Returns:
        The exit code: 0; 1 where the run is done and saved but not pushed as `--push_to_hub` wants it; 2
        where the input or the machine is at fault. One line on standard error then says what to do.
    """
    from hf_lpwd.vision.arguments import parse_args

    arguments = parse_args(argv, prog)
    # What trains takes ten seconds to import; a mistake in the flags is known by now.
    from hf_lpwd.vision.finetune import finetune
    from hf_lpwd.vision.hub.push import PushError

    try:
        finetune(*arguments, argv)
    except BadInputError as error:
        return refuse(prog, error)
    except PushError as error:
        refuse(prog, error)
        return 1
    return 0


def _explain(argv: list[str]) -> int:
    from hf_lpwd.vision.explain_model import main

    return main(argv)


def _audit(argv: list[str]) -> int:
    from hf_lpwd.commands.audit import main

    return main(argv)


def _push(argv: list[str]) -> int:
    from hf_lpwd.vision.hub.push import main

    return main(argv)


def _card(argv: list[str]) -> int:
    from hf_lpwd.study.over_seeds import main

    return main(argv)


def _space(argv: list[str]) -> int:
    from hf_lpwd.vision.hub.space import main

    return main(argv)


def _predict(argv: list[str]) -> int:
    from hf_lpwd.commands.predict import main

    return main(argv)


def _evaluate(argv: list[str]) -> int:
    from hf_lpwd.commands.evaluate import main

    return main(argv)


def _sweep(argv: list[str]) -> int:
    from hf_lpwd.commands.sweep import main

    return main(argv)


def _study(argv: list[str]) -> int:
    from hf_lpwd.commands.study import main

    return main(argv)


def _report(argv: list[str]) -> int:
    from hf_lpwd.commands.report import main

    return main(argv)


def _diagnose(argv: list[str]) -> int:
    from hf_lpwd.study.diagnose import main

    return main(argv)


_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "fine-tune an image classifier, or train one from scratch"),
    "predict": (_predict, "classify images with a trained run, as CSV"),
    "evaluate": (_evaluate, "measure a trained run on a labelled dataset, class by class"),
    "explain": (_explain, "show a model's layers, their decay rates, and what does not decay"),
    "audit": (_audit, "show what the Trainer, timm and this package decay of a model, measured"),
    "sweep": (_sweep, "do the runs of a study: decay methods, compared on your task"),
    "study": (_study, "pack the records of a study into one file"),
    "report": (_report, "write the report of a study: a page, tables and figures"),
    "diagnose": (_diagnose, "measure what decay does: opposing-penalty, shrink, equivalence"),
    "card": (_card, "write a run's card with means and intervals over several seeds"),
    "push": (_push, "upload a run to the Hub"),
    "space": (_space, "write a Gradio app of a run, to try it in the browser or as a Space"),
}


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in _COMMANDS.items())
    return (
        "usage: hf-lpwd COMMAND ...\n\n"
        "Layer-wise pre-weight decay for transformers and timm models.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  -h, --help  this text; 'hf-lpwd COMMAND --help' for a command's flags\n"
        "  --version   the version\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Without the program's name; default `sys.argv[1:]`.

    Returns:
        The exit code; 2 for bad input, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    try:
        return _COMMANDS[command][0](rest)
    except KeyboardInterrupt:
        print(f"hf-lpwd {command}: stopped by SIGINT", file=sys.stderr)
        return 130
