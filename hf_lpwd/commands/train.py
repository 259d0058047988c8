"""`hf-lpwd train`: fine-tunes an image classifier, or trains one from scratch."""

from __future__ import annotations

from collections.abc import Sequence

from hf_lpwd.messages import refuse


def main(argv: Sequence[str], prog: str = "hf-lpwd train") -> int:
    """Runs `hf-lpwd train`; 1 if the run is saved but not pushed as `--push_to_hub` wants it."""
    from hf_lpwd.vision.arguments import parse_args

    arguments = parse_args(argv, prog)
    # What trains takes ten seconds to import; a mistake in the flags is known by now.
    from hf_lpwd.vision.finetune import finetune
    from hf_lpwd.vision.hub.push import PushError

    try:
        finetune(*arguments)
    except PushError as error:
        refuse(prog, error)
        return 1
    return 0
