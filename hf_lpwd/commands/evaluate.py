"""`hf-lpwd evaluate`: what a trained run gets right on a labelled dataset, class by class."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lpwd.commands.flags import TOKEN, add_trained_model, command_parser, require_positive
from hf_lpwd.files import write_bytes, write_json
from hf_lpwd.messages import BadInputError, counted, say

if TYPE_CHECKING:
    from hf_lpwd.vision.data.labelled import LabelledImages


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd evaluate`; returns its exit code, 1 if some images could not be read."""
    parser = command_parser(
        "evaluate",
        "Measure a trained run on all images of a labelled dataset. Classes are matched by name. "
        "Prints a table of the classes and writes results.json, classes.csv, confusion.csv and "
        "confusion.svg. Exit code 1: some images could not be read; each is named on standard error and "
        "counted in results.json.",
    )
    add_trained_model(parser)
    parser.add_argument(
        "dataset", help="a folder of class folders, files (parquet, csv, json), or a dataset on the Hub"
    )
    parser.add_argument(
        "--split", help="split to measure (default: test, else validation, else the only one)"
    )
    parser.add_argument("--dataset_config_name", help="configuration of the dataset on the Hub")
    parser.add_argument("--image_column_name", help="column of the images (default: image or img)")
    parser.add_argument(
        "--label_column_name", help="column of the labels (default: label, labels, fine_label)"
    )
    parser.add_argument("--skip_unlabelled", action="store_true", help="leave out images without a label")
    parser.add_argument("--out", help="folder to write (default: RUN/evaluation-DATASET-SPLIT)")
    parser.add_argument("--token", help=TOKEN)
    args = parser.parse_args(argv)
    require_positive(args, "batch_size")
    results, out = evaluate(args)
    accuracies = ", ".join(f"{name} {value:.4f}" for name, value in results["metrics"].items())
    print(f"\n{counted(results['images'], 'image')}: {accuracies}; in {out}")
    return 1 if results["unreadable"] else 0


def evaluate(args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """Measures a model, prints the table of its classes, and writes the files.

    Args:
        args: The flags of the command.

    Returns:
        What results.json holds, and the folder.

    Raises:
        ValueError: Model, dataset or labels are at fault, or the images are those of the run's training.
    """
    # What loads models and datasets takes seconds to import.
    import datasets
    import numpy as np
    from sklearn.metrics import confusion_matrix
    from transformers import EvalPrediction

    from hf_lpwd.vision.classifier import Classifier
    from hf_lpwd.vision.data.data_args import DataTrainingArguments
    from hf_lpwd.vision.data.labelled import load_labelled, with_training_images
    from hf_lpwd.vision.evaluation import (
        class_table,
        classes_csv,
        classes_text,
        confusion_csv,
        confusion_svg,
    )
    from hf_lpwd.vision.metrics import compute_metrics

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    data_args = DataTrainingArguments(
        dataset_name=args.dataset,
        dataset_config_name=args.dataset_config_name,
        image_column_name=args.image_column_name,
        label_column_name=args.label_column_name,
        skip_unlabelled=args.skip_unlabelled,
    )
    classifier = Classifier(args.run)
    names = classifier.class_names
    data = load_labelled(data_args, names, args.split, scale=classifier.scale, token=args.token)
    data, training_images = with_training_images(data, args.run, args.dataset_config_name)
    if training_images:
        what = f"{data.where} holds the images that {args.run} was trained on"
        if args.split is None:
            raise BadInputError(f"{what}: name another dataset, or --split {data.split} if you want that")
        say(f"hf-lpwd evaluate: {what}: the figures say nothing about new images")
    say(f"hf-lpwd evaluate: {data.facts.describe()}")
    logits, labels, unreadable, known = [], [], [], data.labels
    scale = data.facts.images.scale if data.facts.images else None
    for row, answer in enumerate(classifier.logits(data.cells(), args.batch_size, scale)):
        if isinstance(answer, ValueError):
            unreadable.append(data.describe(row))
            say(f"hf-lpwd evaluate: {unreadable[-1]} cannot be read: {answer}")
        else:
            logits.append(answer.numpy())
            labels.append(known[row])
    if not labels:
        raise BadInputError(f"{data.where}: none of {len(data.rows)} images can be read")
    scores = np.array(logits)
    matrix = confusion_matrix(labels, scores.argmax(axis=1), labels=range(len(names)))
    table = class_table(matrix, names)
    results = {
        "model": args.run,
        "dataset": data.facts.name,
        "split": data.split,
        "images": len(labels),
        "unlabelled": data.unlabelled,
        "unreadable": unreadable,
        "training_images": training_images,
        "data": asdict(data.facts),
        "classes_without_images": table["class"][table["images"] == 0].tolist(),
        "metrics": compute_metrics(EvalPrediction(predictions=scores, label_ids=np.array(labels))),
    }
    out = Path(args.out) if args.out else _folder(args.run, data)
    title = f"{Path(data.where).name}: accuracy {results['metrics']['accuracy']:.4f}"
    write_json(out / "results.json", results)
    write_bytes(out / "classes.csv", classes_csv(table).encode())
    write_bytes(out / "confusion.csv", confusion_csv(matrix, names).encode())
    write_bytes(out / "confusion.svg", confusion_svg(matrix, names, title))
    print(classes_text(table))
    for count, what in (
        (len(results["classes_without_images"]), f"of the model's {len(names)} classes have no image here"),
        (len(unreadable), f"of {len(unreadable) + len(labels)} images could not be read and are left out"),
    ):
        if count:
            say(f"hf-lpwd evaluate: {count} {what}")
    return results, out


def _folder(run: str, data: LabelledImages) -> Path:
    """Returns the default of ``--out``: in the run's folder, or here for a model on the Hub."""
    name = re.sub(r"[^\w.-]+", "-", f"evaluation-{Path(data.where).name}").strip("-")
    return Path(run) / name if Path(run).is_dir() else Path(name)
