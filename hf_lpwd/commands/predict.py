"""`hf-lpwd predict`: the classes of images, by a trained run, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from hf_lpwd.commands.flags import add_trained_model, command_parser, require_positive
from hf_lpwd.files import write_bytes
from hf_lpwd.messages import BadInputError, counted, say

COLUMNS = ("image", "rank", "class", "score")


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd predict`; returns its exit code, 1 if some images could not be read."""
    parser = command_parser(
        "predict",
        "Classify images with a trained run and its image processor. Writes CSV: image, rank, class, score. "
        "Exit code 1: some images could not be read; each is named on standard error.",
    )
    add_trained_model(parser)
    parser.add_argument("images", nargs="+", help="image files, folders and archives of them")
    parser.add_argument("--out", help="CSV file to write (default: standard output)")
    parser.add_argument("--top_k", type=int, default=1, help="classes for each image (default: %(default)s)")
    args = parser.parse_args(argv)
    require_positive(args, "top_k", "batch_size")
    paths = find_images(args.images)
    # What loads models and images takes seconds to import.
    from hf_lpwd.vision.data.image_files import frames_note

    text, unreadable = predict(args.run, paths, args.top_k, args.batch_size)
    if args.out:
        write_bytes(args.out, text.encode("utf-8", "surrogateescape"))
    else:
        print(text, end="")
    if (frames := frames_note({"bytes": None, "path": str(path)} for path in paths)) is not None:
        say(f"{parser.prog}: {frames}")
    for path, why in unreadable.items():
        say(f"{parser.prog}: {path} cannot be read: {why}")
    classified = f"{len(paths) - len(unreadable)} of {counted(len(paths), 'image')} classified"
    say(f"{parser.prog}: {classified}" + (f", in {args.out}" if args.out else ""))
    return 1 if unreadable else 0


def find_images(names: Sequence[str]) -> list[Path]:
    """Returns the image files that are named, and those in the folders and archives that are named, sorted.

    Folders are read as those of datasets are, see `hf_lpwd.vision.data.listing.list_folder`. What is left out
    is counted in a line on standard error.

    Raises:
        BadInputError: A name does not exist, or a folder holds no image.
    """
    from hf_lpwd.vision.data.listing import is_archive, list_folder, refuse_run, unpack

    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if not path.exists():
            raise BadInputError(f"no such file or folder: {name}")
        if path.is_file() and is_archive(path):
            path = unpack(path)
        if not path.is_dir():
            paths.append(path)
            continue
        refuse_run(path, name, "of images")
        listing = list_folder(path)
        left_out = ", ".join(f"{why} ({count})" for why, count in listing.left_out.items())
        if not listing.images:
            raise BadInputError(f"{name} holds no image" + (f"; left out: {left_out}" if left_out else ""))
        if left_out:
            say(f"hf-lpwd predict: {name}: left out: {left_out}")
        paths += [Path(image.path) for image in listing.images]
    return paths


def predict(
    run: str, paths: Sequence[Path], top_k: int = 1, batch_size: int = 32
) -> tuple[str, dict[Path, str]]:
    """Classifies image files.

    Args:
        run: As for `Classifier`.
        paths: The images.
        top_k: How many classes to give for each image, best first.
        batch_size: How many images are classified at once.

    Returns:
        CSV with the columns `COLUMNS`, and the images that cannot be read with the reason. The score is the
        softmax over all classes, as in ``pipeline("image-classification")``.
    """
    # What loads models takes seconds to import.
    from hf_lpwd.vision.classifier import Classifier
    from hf_lpwd.vision.data.sample import find_scale

    classifier = Classifier(run)
    cells = [{"bytes": None, "path": str(path)} for path in paths]
    scale = classifier.scale
    if scale is None and (scale := find_scale([[{"image": cell} for cell in cells]], "image")) is not None:
        say(f"hf-lpwd predict: there are images of {scale.describe()}")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    unreadable = {}
    for path, logits in zip(paths, classifier.logits(cells, batch_size, scale), strict=True):
        if isinstance(logits, ValueError):
            unreadable[path] = str(logits)
            continue
        scores, classes = logits.softmax(-1).topk(min(top_k, len(logits)))
        for rank, (score, index) in enumerate(zip(scores.tolist(), classes.tolist(), strict=True), start=1):
            writer.writerow([path, rank, classifier.class_names[index], f"{score:.6g}"])
    return table.getvalue(), unreadable
