"""`hf-lpwd diagnose`: what weight decay does to a model in training, or to a trained one."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError, OneLineParser, refuse
from hf_lpwd.study import diagnose
from hf_lpwd.study.plotting import new_canvas, saved, style


@dataclass(frozen=True)
class _Kind:
    """A diagnostic: what measures it, its axes and title, what it does, and what is printed of its lines."""

    measure: Callable[[Sequence[str], str], tuple[list[float], diagnose.Lines]]
    x: str
    y: str
    title: str
    does: str
    help: str


_KINDS = {
    "opposing-penalty": _Kind(
        diagnose.opposing_penalty,
        "step",
        "R_op",
        "Fraction of decayed parameters that decay enlarges",
        "trains with timing wd and measures R_op at each logged step",
        "R_op: the fraction of decayed parameters that a step's decay pushes away from zero (the\n"
        "paper's Figure 2). Trains once, with timing wd; under rwd and pwd it is 0.",
    ),
    "shrink": _Kind(
        diagnose.shrink,
        "weights multiplied by",
        "validation accuracy",
        "Accuracy of a shrunk model",
        "multiplies the decayed weights by 1 to 0, of all layers and of each, and measures accuracy",
        "How much of the weights the accuracy needs: they are multiplied by 1, 0.9, ..., 0, in all\n"
        "layers and in each alone (Figure 3a). Trains only without --model_name_or_path.",
    ),
    "equivalence": _Kind(
        diagnose.equivalence,
        "step",
        "distance from AdamW / distance AdamW moved",
        "How far the timings are from AdamW",
        "trains wd, rwd, pwd, and wd on other batches, from the same weights, and compares the weights",
        "How far the weights under rwd and pwd are from those under wd, next to wd on other batches.\n"
        "Trains four times.",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd diagnose`."""
    kinds = "\n".join(f"  {name}\n    " + kind.help.replace("\n", "\n    ") for name, kind in _KINDS.items())
    parser = OneLineParser(
        prog="hf-lpwd diagnose",
        usage="hf-lpwd diagnose KIND [--out DIR] [flags of hf-lpwd train]",
        description="Measure what weight decay does to a model in training, or to a trained one. Nothing is\n"
        "uploaded, and no model is kept. Without other flags: a small ViT on scikit-learn's digits.\n\n"
        f"kinds:\n{kinds}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", metavar="KIND", choices=list(_KINDS), help="what to measure, see above")
    parser.add_argument("--out", metavar="DIR", help="folder for table and figure; default: diagnostics/KIND")
    args, flags = parser.parse_known_args(argv)
    kind = _KINDS[args.kind]
    prog = f"hf-lpwd diagnose {args.kind}"
    out = Path(args.out or f"diagnostics/{args.kind}")
    if out.is_file():
        return refuse(prog, f"out {out} is a file: name a folder")
    if not out.is_dir():
        # A folder that cannot be made is refused before anything trains.
        out.mkdir(parents=True)
        out.rmdir()
    print(f"{args.kind}: {kind.does}", flush=True)
    try:
        xs, lines = kind.measure(flags, prog)
    except (BadInputError, ValueError) as error:
        return refuse(prog, error)
    _write(out / args.kind, xs, lines, kind)
    if args.kind == "shrink":
        _print_curve(xs, lines)
    elif args.kind == "opposing-penalty":
        print("mean over the steps measured:")
        for name, values in lines.items():
            print(f"  {name}: {sum(values) / len(values):.4g}")
    else:
        print(f"at {kind.x} {xs[-1]:g}:")
        for name, values in lines.items():
            print(f"  {name}: {values[-1]:.4g}")
    print(f"table and figure in {out}")
    return 0


def _print_curve(xs: Sequence[float], lines: diagnose.Lines) -> None:
    width = max(map(len, lines))
    print(f"{'':{width}}  " + "  ".join(f"{x:>5g}" for x in xs))
    for name, values in lines.items():
        print(f"{name:{width}}  " + "  ".join(f"{value:5.3f}" for value in values))


def _write(path: Path, xs: list[float], lines: diagnose.Lines, kind: _Kind) -> None:
    table = pd.DataFrame({kind.x: xs, **lines})
    write_bytes(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n").encode())
    with new_canvas(7.5, 4.5) as canvas:
        axes = canvas.subplots()
        for number, (name, values) in enumerate(lines.items()):
            axes.plot(xs, values, label=name.replace("_", " "), **style(number))
        axes.set(xlabel=kind.x, ylabel=kind.y, title=kind.title)
        if min(min(values) for values in lines.values()) > 0.0 and path.name == "equivalence":
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        canvas.legend(loc="outside right upper", fontsize=8)
        figure = saved(canvas, path.name, kind.title, "")
    write_bytes(path.with_suffix(".png"), figure.png)
    write_bytes(path.with_suffix(".svg"), figure.svg)
