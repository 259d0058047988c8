"""`hf-lpwd space`: writes a Gradio app of a run, and pushes it as a Space where asked."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_lpwd.commands.flags import TOKEN, command_parser
from hf_lpwd.messages import BadInputError, refuse
from hf_lpwd.vision.hub.push import PushError, upload
from hf_lpwd.vision.hub.space import write_space


def main(argv: Sequence[str]) -> int:
    """Runs `hf-lpwd space`; returns its exit code, 1 if the app is written but the Hub did not take it."""
    parser = command_parser(
        "space", "Write a Gradio app of a run: drop an image, see its class and the layer rates."
    )
    parser.add_argument("output_dir", help="output folder of a run of hf-lpwd train")
    parser.add_argument("--out", help="folder of the app (default: OUTPUT_DIR/space)")
    parser.add_argument("--push", metavar="REPO_ID", help="upload it as this Space")
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument("--token", help=TOKEN)
    args = parser.parse_args(argv)
    from huggingface_hub.utils import validate_repo_id

    output_dir = Path(args.output_dir)
    if args.push:
        validate_repo_id(args.push)
    elif args.private or args.token:
        raise BadInputError("private and token are for push: give --push REPO_ID too, or drop them")
    out = Path(args.out) if args.out else output_dir / "space"
    files = write_space(output_dir, out)
    folder = shlex.quote(str(out))
    print(f"run it: pip install -r {folder}/requirements.txt && python {folder}/app.py")
    if args.push:
        try:
            url, _ = upload(
                files, args.push, token=args.token, repo_type="space", private=args.private or None
            )
        except PushError as error:
            refuse(parser.prog, f"{error}; the same command tries again")
            return 1
        print(f"pushed: {url}")
    return 0
