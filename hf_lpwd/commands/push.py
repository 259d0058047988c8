"""`hf-lpwd push`: uploads a run to the Hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_lpwd.commands.flags import TOKEN, command_parser
from hf_lpwd.messages import BadInputError, refuse
from hf_lpwd.vision.hub.push import PushError, files_to_push, listing, upload


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd push`; returns its exit code, 1 if the Hub did not take the files."""
    parser = command_parser(
        "push",
        "Upload a run to the Hub: model, processor, card, curves, layer rates and metrics. Files that are "
        "there already are not sent again. Exit code 1: it did not succeed and can be repeated.",
    )
    parser.add_argument("output_dir", help="output folder of a run of hf-lpwd train")
    parser.add_argument("repo_id", help="user/name on the Hub, or a name alone under your own user")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", help="branch, made if missing, or a pull request, refs/pr/1 (default: main)"
    )
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--include_checkpoints", action="store_true", help="upload optimizer states too")
    parser.add_argument("--dry_run", action="store_true", help="list what would be uploaded, without network")
    parser.add_argument("--commit_message", default="Upload with hf-lpwd", help="default: %(default)s")
    parser.add_argument("--token", help=TOKEN)
    args = parser.parse_args(argv)
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    if not sys.stderr.isatty():
        disable_progress_bars()
    folder = Path(args.output_dir)
    validate_repo_id(args.repo_id)
    if args.create_pr and args.revision not in (None, "main"):
        raise BadInputError(f"create_pr opens a pull request against main, not {args.revision!r}: drop one")
    checkpoints = sorted(folder.glob("checkpoint-*")) if args.include_checkpoints else []
    files = files_to_push(folder, checkpoints)
    if args.dry_run:
        print(f"would upload to {args.repo_id}, bytes and path:\n{listing(files)}")
        return 0
    try:
        url, changed = upload(
            files,
            args.repo_id,
            token=args.token,
            private=args.private or None,
            revision=args.revision,
            create_pr=args.create_pr,
            message=args.commit_message,
        )
    except PushError as error:
        refuse(parser.prog, f"{error}; the same command tries again")
        return 1
    print(f"pushed: {url}" if changed else f"nothing to push, all files are there already: {url}")
    return 0
