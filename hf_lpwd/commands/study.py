"""`hf-lpwd study`: from a study's file to its report."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError, OneLineParser, counted, refuse, say, warnings_once
from hf_lpwd.study.records import pack_records

_DESCRIPTION = """\
Compare weight decays on your task: runs with paired seeds, a plan that is stored before the first run, and a
report that says better, worse, equivalent within a margin, or undecided.

  hf-lpwd study init study.yaml --dataset_name beans   writes a commented file: every key is explained there
  hf-lpwd study plan study.yaml                        runs, hours, and the difference that they can show
  hf-lpwd study register study.yaml                    freezes questions and runs; the report says deviations
  hf-lpwd study run study.yaml                         does the runs; killed, it goes on where it was
  hf-lpwd study report study.yaml                      writes report/index.html
"""

_INIT = ("dataset_name", "train_dir", "model_name_or_path", "model_type", "test_split")


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd study`; 1 if runs failed, 130 if interrupted."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return args.do(args)
    except (BadInputError, OSError) as error:
        return refuse(f"hf-lpwd study {args.action}", error)


def _parser() -> ArgumentParser:
    from argparse import RawDescriptionHelpFormatter

    parser = OneLineParser(
        prog="hf-lpwd study",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=OneLineParser
    )

    def add(name: str, do: Callable[[Namespace], int], text: str) -> ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(do=do, parser=action)
        return action

    init = add("init", _init, "write a study's file, with comments, for a dataset and a model")
    init.add_argument("file", metavar="FILE", help="file to write")
    for name in _INIT:
        kind = float if name == "test_split" else str
        init.add_argument(f"--{name}", type=kind, help="as in hf-lpwd train")
    plan = add("plan", _plan, "check data, model and rates, time a few steps, and say what the study takes")
    _add_study(plan)
    plan.add_argument("--n_jobs", type=int, help="runs side by side; default: one a core, on a GPU one")
    plan.add_argument(
        "--std", type=float, help="standard deviation of paired differences in points, if known"
    )
    plan.add_argument("--budget", help="a time, such as 2h: choose decay rates and seeds for it")
    plan.add_argument("--out", help="with --budget: file for the study with these rates and seeds")
    register = add("register", _register, "freeze questions and runs in the folder of the records")
    _add_study(register)
    run = add("run", _run, "do the runs; started again, it goes on; started twice, the work is shared")
    _add_study(run)
    add_run_flags(run)
    report = add("report", _report, "write the report of a study")
    _add_study(report)
    report.add_argument("--out", default="report", help="folder to write to; default: %(default)s")
    pack = add("pack", _pack, "pack the records of folders into one file that report reads")
    pack.add_argument("runs", metavar="RUNS", nargs="+", help="folders of the records")
    pack.add_argument("file", metavar="FILE", help="file to write, .jsonl.gz or .jsonl")
    return parser


def _add_study(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the study, as hf-lpwd study init writes it")
    parser.add_argument("--runs", help="folder of the records; default: runs/ and the file's name")


def add_run_flags(parser: ArgumentParser) -> None:
    """Adds the flags of `hf-lpwd study run`."""
    parser.add_argument("--n_jobs", type=int, help="runs side by side; default: one a core, on a GPU one")
    parser.add_argument("--backend", choices=("loky", "ray"), default="loky", help="default: %(default)s")
    parser.add_argument("--gpus_per_run", type=float, default=0.0, help="with ray: share of a GPU per run")
    parser.add_argument("--retry_failed", action="store_true", help="do runs again that failed")


def _init(args: Namespace) -> int:
    from hf_lpwd.study.planning import write_study

    write_study(args.file, {name: value for name in _INIT if (value := getattr(args, name)) is not None})
    print(f"written: {args.file}")
    print(_next("plan", args.file))
    return 0


@warnings_once(say)
def _plan(args: Namespace) -> int:
    from hf_lpwd.study import planning
    from hf_lpwd.study.config import read_study
    from hf_lpwd.study.plan import can_register, differences

    if args.out and args.budget is None:
        raise BadInputError("out is the study that a budget buys: add --budget")
    if args.out:
        planning.check_new(args.out)
    budget = None if args.budget is None else planning.parse_duration(args.budget)
    study = read_study(args.file)
    # The study that is run next: this one, or that of the budget, which has other runs but these questions.
    following = Namespace(file=args.out or args.file, runs=args.runs)
    folder = runs_folder(following)
    deviations = differences(folder, study.questions, study.planned())
    for line in deviations if not args.out else ():
        print(line)
    jobs = side_by_side(args.n_jobs)
    trials = [planning.timed_trial(run) for run in planning.one_run_a_task(study.runs)]
    # The highest rate of each method is the one that may take a whole weight away in a step.
    highest = {run.method: run for run in sorted(study.runs, key=lambda run: _rate(run.settings))}
    for run in highest.values():
        planning.check_run(run)
    for line in planning.describe(study, trials, jobs, args.std):
        print(line)
    if budget is not None:
        choice = planning.fit_budget(study, budget, max(trial.seconds for trial in trials), jobs)
        print(
            f"{args.budget} are enough for {choice.num_runs} runs: {choice.num_seeds} seeds, decay rates "
            f"{', '.join(f'{rate:g}' for rate in choice.decays)}"
        )
        if args.out:
            content = yaml.safe_load(Path(args.file).expanduser().read_text(encoding="utf-8"))
            train, grid = content.get("train") or {}, content.get("grid") or {}
            axis = "total_decay" if "total_decay" in train | grid else "weight_decay"
            chosen = {axis: choice.decays, "seed": list(range(choice.num_seeds))}
            train = {name: value for name, value in train.items() if name not in chosen}
            content |= {"train": train, "grid": grid | chosen}
            write_bytes(args.out, yaml.safe_dump(content, sort_keys=False).encode())
            print(f"written: {args.out}")
            study = read_study(args.out)
            for line in differences(folder, study.questions, study.planned()):
                print(line)
    action = "register" if can_register(folder, study.planned()) else "run"
    print(_next(action, following.file, following.runs))
    return 0


def _next(action: str, file: str, runs: str | None = None) -> str:
    return f"next: hf-lpwd study {action} {file}{'' if runs is None else f' --runs {runs}'}"


def _rate(settings: dict) -> float:
    return settings.get("total_decay", settings.get("weight_decay", 0.0)) * settings["learning_rate"]


def _register(args: Namespace) -> int:
    from hf_lpwd.study.config import read_study
    from hf_lpwd.study.plan import store_plan

    study = read_study(args.file)
    folder = runs_folder(args)
    plan = store_plan(folder, study.questions, study.planned(), register=True)
    print(f"registered in {folder}/plan.json: {counted(len(plan.runs), 'run')}, SHA-256 {plan.registered}")
    print(_next("run", args.file, args.runs))
    return 0


def _run(args: Namespace) -> int:
    return run_study(args, "hf-lpwd study run")


@warnings_once(say)
def run_study(args: Namespace, prog: str) -> int:
    """Does the runs of a study that have no record yet; `hf-lpwd sweep` is the same."""
    from hf_lpwd.study.config import read_study
    from hf_lpwd.study.plan import differences, store_plan
    from hf_lpwd.study.planning import check_run, one_run_a_task
    from hf_lpwd.study.sweep import sweep

    if args.n_jobs == 0 or args.gpus_per_run < 0:
        raise BadInputError("n_jobs must not be 0, and gpus_per_run not negative")
    if args.gpus_per_run and args.backend != "ray":
        raise BadInputError("gpus_per_run is Ray's: add --backend ray")
    study = read_study(args.file)
    folder = runs_folder(args)
    for line in differences(folder, study.questions, study.planned()):
        print(line, file=sys.stderr)
    missing = [run for run in study.runs if not (Path(folder) / f"{run.id}.json").exists()]
    # What is wrong with a dataset or a model is said once, not by each run.
    for said in dict.fromkeys(check_run(run) for run in one_run_a_task(missing)):
        if said is not None:
            print(said, file=sys.stderr)
    store_plan(folder, study.questions, study.planned())
    try:
        ends = sweep(
            study.runs,
            folder,
            n_jobs=side_by_side(args.n_jobs),
            backend=args.backend,
            gpus_per_run=args.gpus_per_run,
            retry_failed=args.retry_failed,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this ended", file=sys.stderr)
        return 130
    except ImportError as error:
        return refuse(prog, f"{error}: install the extra, pip install 'hf-lpwd[ray]'")
    print(
        f"{counted(ends['here'], 'run')} done; {ends['completed']} completed, {ends['diverged']} diverged "
        f"and {ends['failed']} failed in {folder}"
    )
    print(_next("report", args.file, args.runs))
    return 1 if ends["failed"] else 0


def _report(args: Namespace) -> int:
    from hf_lpwd.commands.report import print_report
    from hf_lpwd.study.config import read_study
    from hf_lpwd.study.plan import differences

    folder, file = runs_folder(args), args.file
    if not Path(folder).exists():
        known = f"{folder} does not exist: hf-lpwd study run {file} writes the records"
        raise BadInputError(known if Path(file).exists() else f"{file} does not exist")
    if Path(file).exists():
        study = read_study(file)
        for line in differences(folder, study.questions, study.planned()):
            print(line)
    print_report(folder, args.out)
    return 0


def _pack(args: Namespace) -> int:
    print(f"{counted(pack_records(args.runs, args.file), 'record')} in {args.file}")
    return 0


def runs_folder(args: Namespace) -> str:
    """Folder of the records of a study."""
    return args.runs or str(Path("runs") / Path(args.file).stem)


def side_by_side(n_jobs: int | None) -> int:
    """How many runs are done at a time: one a core, on a GPU one, unless told otherwise."""
    import joblib
    import torch

    if n_jobs is None:
        n_jobs = 1 if torch.accelerator.is_available() else -1
    return joblib.effective_n_jobs(n_jobs)
