"""The main job: one data set, one model, one run, from the command line to the saved model and its card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from pathlib import Path

import datasets
from transformers import TrainerCallback
from transformers.utils import logging

from hf_lpwd.checkpoints.interruption import Interrupted, StopOnSignal
from hf_lpwd.checkpoints.run_folder import sole_use
from hf_lpwd.checkpoints.run_record import write_record
from hf_lpwd.files import write_bytes, write_json
from hf_lpwd.messages import BadInputError, say
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.vision.curves import draw_curves
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.images import EpochCallback, collate
from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.failures import MACHINE_ERRORS, StopWhereNotFinite, failure_line
from hf_lpwd.vision.hub.card import card_facts, write_card
from hf_lpwd.vision.hub.push_callback import PushCallback
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.metrics import compute_metrics, logits_only
from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.prepare import Run, named_checkpoint, prepare
from hf_lpwd.vision.training_args import ImageTrainingArguments

#: Split -> what `Trainer` puts before the names of its metrics.
PREFIXES = {"validation": "eval", "test": "test"}

logger = logging.get_logger(__name__)


def finetune(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training_args: ImageTrainingArguments,
    argv: Sequence[str],
) -> None:
    """Does one run, from the data to the saved model, its figures and its card.

    Args:
        model_args: What `hf_lpwd.vision.arguments.parse_args` returns, as the next two.
        data_args: The data.
        training_args: How to train.
        argv: The command line that these came from, for the card.

    Raises:
        BadInputError: Something in the input is wrong, or the machine lacks memory, disk or a right; the
            message says what.
        PushError: The run is done and saved, but was not uploaded as `push_to_hub` wants it.
        Interrupted: Ctrl-C or SIGTERM; a line on standard error says how to go on.
    """
    logging.set_verbosity(training_args.get_process_log_level())
    # One bar for each saved file would break up the bar of the training.
    logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        first = training_args.process_index == 0
        with StopOnSignal() as stop, sole_use(str(training_args.output_dir)) if first else nullcontext():
            _finetune(model_args, data_args, training_args, argv, stop)
    except Interrupted as end:
        if training_args.process_index == 0:
            say(f"hf-lpwd train: {end}")
        raise
    except MACHINE_ERRORS as error:
        line = failure_line(error)
        if line is None:
            raise
        raise BadInputError(line) from error


def _finetune(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training_args: ImageTrainingArguments,
    argv: Sequence[str],
    stop: StopOnSignal,
) -> None:
    push_to_hub, training_args = training_args.push_to_hub, copy(training_args)
    training_args.push_to_hub = False
    try:
        push = PushCallback(training_args, model_args.token) if push_to_hub else None
        run = prepare(model_args, data_args, training_args)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    # The push comes first, so that it sees the last checkpoint of a stopped run.
    callbacks = [*([push] if push else []), stop, StopWhereNotFinite()]
    with push or nullcontext():
        trainer, metrics = train_and_evaluate(run, training_args, callbacks)
        if trainer.is_world_process_zero():
            write_results(run, trainer, metrics, argv)
            print(_closing_line(run, metrics, str(training_args.output_dir)))
            if push:
                print(f"pushed: {push.finish()}")


def make_trainer(
    run: Run,
    args: ImageTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    optimizer: LayerwiseDecay | None = None,
) -> ImageTrainer:
    """Makes the trainer of a run.

    Args:
        run: From `prepare`.
        args: How to train.
        callbacks: For the trainer.
        optimizer: Instead of the one that the arguments name.
    """
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


def train_and_evaluate(
    run: Run, args: ImageTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> tuple[ImageTrainer, dict[str, dict[str, float]]]:
    """Trains, keeps the checkpoint that was best on validation, and reads the test split once.

    Args:
        run: From `prepare`.
        args: How to train.
        callbacks: For the trainer.

    Returns:
        The trainer, and the metrics of each split that was evaluated, without the Trainer's prefixes.
    """
    trainer = make_trainer(run, args, callbacks)
    for role, images in run.images.items():
        if images.num_skipped:
            logger.warning(f"{role}: {images.num_skipped} pictures that cannot be decoded are left out")
    if args.do_train:
        if args.weight_decay == 0.0:
            logger.warning("weight_decay is 0, so that nothing decays: set --weight_decay, e.g. to 0.05")
        if trainer.is_world_process_zero():
            write_record(str(args.output_dir), run.settings)
        result = trainer.train(resume_from_checkpoint=_resume_from(trainer, args))
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    metrics = {}
    for role, prefix in PREFIXES.items():
        if role in run.images:
            values = trainer.evaluate(run.images[role], metric_key_prefix=prefix)
            trainer.save_metrics(prefix, values)
            metrics[role] = {key.removeprefix(f"{prefix}_"): value for key, value in values.items()}
    return trainer, metrics


def write_results(
    run: Run, trainer: ImageTrainer, metrics: dict[str, dict[str, float]], argv: Sequence[str]
) -> None:
    """Writes the layer rates, the curves and the model card into the output folder.

    Args:
        run: From `prepare`.
        trainer: After training.
        metrics: From `train_and_evaluate`.
        argv: The command line, for the card.
    """
    folder = Path(str(trainer.args.output_dir))
    write_json(folder / "layer_rates.json", (trainer.layer_plan or run.plan).to_dict())
    if trainer.args.do_train:
        write_bytes(folder / "curves.png", draw_curves(trainer.state.log_history, folder.name))
        write_card(folder, card_facts(run, metrics, trainer.args))


def _resume_from(trainer: ImageTrainer, args: ImageTrainingArguments) -> str | None:
    """Returns the checkpoint to go on from; a run killed before its first one starts anew by itself."""
    checkpoint = named_checkpoint(args)
    if checkpoint is not True:
        return checkpoint or None
    found = trainer.last_complete_checkpoint()
    if found is None:
        logger.warning(f"{args.output_dir} has no complete checkpoint: the run starts from the beginning")
    return found


def _closing_line(run: Run, metrics: dict[str, dict[str, float]], output_dir: str | None) -> str:
    accuracies = [
        f"{role} accuracy {values['accuracy']:.4f} ({len(run.images[role])} pictures)"
        for role, values in metrics.items()
    ]
    if "test" not in run.images:
        accuracies.append("no labelled test split")
    return ", ".join(accuracies) + f"; saved in {output_dir}"
