"""The main job: one dataset, one model, one run, from the arguments to the saved model and its card."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, replace
from logging import ERROR
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_lpwd.checkpoints.interruption import Interrupted, StopOnSignal
from hf_lpwd.checkpoints.run_folder import sole_use
from hf_lpwd.checkpoints.run_record import write_record
from hf_lpwd.files import RUN_FACTS, write_bytes, write_json
from hf_lpwd.messages import BadInputError, counted, escaped, say
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.trainer_log import DecayReport
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.images import EpochCallback, collate
from hf_lpwd.vision.data.labelled import write_training_images
from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.evaluate_splits import evaluate_splits
from hf_lpwd.vision.failures import MACHINE_ERRORS, StopWhereNotFinite, failure_line
from hf_lpwd.vision.hub.card import card_facts, write_card
from hf_lpwd.vision.hub.push_callback import PushCallback
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.metrics import compute_metrics, logits_only
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.prepare import Run, named_checkpoint, prepare
from hf_lpwd.vision.progress import EpochLines, draw_curves, how_it_went
from hf_lpwd.vision.run_facts import with_time
from hf_lpwd.vision.run_settings import RUN_YAML, run_yaml
from hf_lpwd.vision.training_args import ImageTrainingArguments

#: Split -> what `Trainer` puts before the names of its metrics.
PREFIXES = {"validation": "eval", "test": "test"}

logger = logging.get_logger(__name__)


def finetune(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training_args: ImageTrainingArguments,
) -> None:
    """Does one run, from the arguments of `parse_args` to the saved model and its card.

    Raises:
        BadInputError: Something in the input is wrong, or the machine lacks memory, disk or a right; the
            message says what.
        PushError: The run is done and saved, but was not uploaded as `push_to_hub` wants it.
        Interrupted: Ctrl-C or SIGTERM; a line on standard error says how to go on.
    """
    logging.set_verbosity(training_args.get_process_log_level())
    first = training_args.process_index == 0
    if not first:  # what one process has to say about data and settings is enough
        logging.get_logger("hf_lpwd").setLevel(ERROR)
    # One bar for each saved file would break up the bar of the training.
    logging.disable_progress_bar()
    # It compares a fraction of the steps with their number; `check_run` has compared the run's settings.
    logging.get_logger("transformers.trainer_utils").addFilter(_no_comparison_of_fractions)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        with StopOnSignal() as stop, sole_use(str(training_args.output_dir)) if first else nullcontext():
            _finetune(model_args, data_args, training_args, stop)
    except Interrupted as end:
        if first:
            say(f"hf-lpwd train: {end}")
        raise
    except MACHINE_ERRORS as error:
        line = failure_line(error)
        if line is None:
            raise
        raise BadInputError(line) from error


def _no_comparison_of_fractions(record: Any) -> bool:
    return "do not match the ones in the `trainer_state.json`" not in record.getMessage()


def _finetune(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training_args: ImageTrainingArguments,
    stop: StopOnSignal,
) -> None:
    push_to_hub, training_args = training_args.push_to_hub, copy(training_args)
    training_args.push_to_hub = False
    if not training_args.do_train:
        if push_to_hub:
            raise BadInputError("push_to_hub uploads what was trained, but --do_train is not given: drop one")
        evaluate_splits(model_args, data_args, training_args)
        return
    try:
        push = PushCallback(training_args, model_args.token) if push_to_hub else None
        run = prepare(model_args, data_args, training_args)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    # The push comes first, so that it sees the last checkpoint of a stopped run.
    decay = DecayReport(quiet=True)
    callbacks = [*([push] if push else []), stop, StopWhereNotFinite(), decay]
    with push or nullcontext():
        trainer = make_trainer(run, training_args, callbacks)
        run = replace(run, facts=with_time(run.facts, trainer))
        EpochLines(run.facts.describe()).print_instead_of(trainer)
        parts = (model_args, data_args, training_args)
        if trainer.is_world_process_zero():
            folder = Path(str(training_args.output_dir))
            if named_checkpoint(training_args) is None and (folder / "train_results.json").exists():
                logger.warning(
                    f"{folder} holds this run, finished: it is trained again, and its results are replaced"
                )
            trainer.callback_handler.callbacks.insert(0, _WriteWhatItWillDo(run, parts))
        train(trainer)
        metrics = evaluate(run, trainer)
        if trainer.is_world_process_zero():
            write_results(run, trainer, metrics, parts, decay)
            _print_results(run, trainer, metrics)
            if push:
                print(f"pushed: {push.finish()}")


class _WriteWhatItWillDo(TrainerCallback):
    """Writes whose folder it is, the settings for ``--config`` and the facts of the first paragraph.

    When training begins: by then everything that refuses a run has had its say.
    """

    def __init__(self, run: Run, parts: tuple[Any, ...]) -> None:
        self.run, self.parts = run, parts

    def on_train_begin(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir))
        write_record(folder, self.run.settings)
        write_training_images(folder, self.run.splits)
        write_bytes(folder / RUN_YAML, run_yaml(self.parts).encode())
        write_json(folder / RUN_FACTS, asdict(self.run.facts))


def make_trainer(
    run: Run,
    args: ImageTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    optimizer: LayerwiseDecay | None = None,
) -> ImageTrainer:
    """Makes the trainer of a run; `optimizer` replaces the one that the arguments name."""
    trainer = ImageTrainer(
        model=run.model,
        args=args,
        transform=ImageTransform(run.processor),
        mix=run.mix,
        train_dataset=run.images.get("train"),
        eval_dataset=run.images.get("validation"),
        data_collator=collate,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=logits_only,
        processing_class=run.processor,
        optimizers=(optimizer, None),
        layer_map=run.plan.layer_map,
        callbacks=[EpochCallback(), *callbacks],
    )
    trainer.run_settings = run.settings
    return trainer


def train(trainer: ImageTrainer) -> None:
    """Trains, or goes on from a checkpoint, and saves the model that was best on validation."""
    args = trainer.args
    result = trainer.train(resume_from_checkpoint=_resume_from(trainer, args))
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def evaluate(run: Run, trainer: ImageTrainer) -> dict[str, dict[str, float]]:
    """Measures the validation and the test split, each once.

    Returns:
        Split -> metric -> value, without the Trainer's prefixes; `samples` is the number of images measured.
    """
    metrics = {}
    for role, prefix in PREFIXES.items():
        if role in run.images:
            values = trainer.evaluate(run.images[role], metric_key_prefix=prefix)
            values[f"{prefix}_samples"] = len(run.images[role])
            trainer.save_metrics(prefix, values)
            metrics[role] = {key.removeprefix(f"{prefix}_"): value for key, value in values.items()}
    return metrics


def write_results(
    run: Run,
    trainer: ImageTrainer,
    metrics: dict[str, dict[str, float]],
    parts: tuple[Any, ...],
    decay: DecayReport,
) -> None:
    """Writes the layer rates, the curves and the model card into the output folder."""
    folder = Path(str(trainer.args.output_dir))
    # The plan that the optimizer was made from, if one was made.
    run = replace(run, plan=trainer.layer_plan or run.plan)
    write_json(folder / "layer_rates.json", run.plan.to_dict())
    write_bytes(folder / "curves.png", draw_curves(trainer.state.log_history, folder.name))
    findings = decay.measurement.findings if decay.measurement else None
    write_card(folder, card_facts(run, metrics, parts, findings))


def _resume_from(trainer: ImageTrainer, args: ImageTrainingArguments) -> str | None:
    """Returns the checkpoint to go on from; a run killed before its first one starts again by itself."""
    checkpoint = named_checkpoint(args)
    if checkpoint is not True:
        return checkpoint or None
    found = trainer.last_complete_checkpoint()
    if found is None:
        logger.warning(f"{args.output_dir} has no complete checkpoint: the run starts from the beginning")
    return found


def _print_results(run: Run, trainer: ImageTrainer, metrics: dict[str, dict[str, float]]) -> None:
    """Prints how the training went, the accuracies with the images that they are of, and what to do next."""
    folder = trainer.args.output_dir
    print(how_it_went(trainer.state, trainer.args))
    accuracies = []
    for role, values in metrics.items():
        measured, available = len(run.images[role]), run.splits.facts.splits[role].available
        of = f"{measured} of " if measured < available else ""
        accuracies.append(f"{role} accuracy {values['accuracy']:.4f} ({of}{counted(available, 'image')})")
    if "test" not in run.images:
        accuracies.append("no labelled test split")
    skipped = sum(part.num_skipped for part in run.images.values())
    if skipped:
        left_out = counted(skipped, "image that cannot be decoded is", "images that cannot be decoded are")
        accuracies.append(f"{left_out} left out")
    # What was decided about the data, such as which folders are the classes, bears on these figures.
    print(escaped("; ".join([", ".join(accuracies), *run.splits.facts.notes, f"saved in {folder}"])))
    print(f"next: hf-lpwd predict {shlex.quote(str(folder))} IMAGES")
