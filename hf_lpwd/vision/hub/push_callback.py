"""`--push_to_hub`: uploads during and after training; a failed upload does not end the run."""

from __future__ import annotations

import shlex
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_lpwd.vision.hub.patience import leave_within_grace
from hf_lpwd.vision.hub.push import PushError, files_to_push, upload

logger = logging.get_logger(__name__)


class PushCallback(TrainerCallback):
    """Uploads each checkpoint as the Trainer's arguments say: `hub_strategy`, `hub_model_id` and so on.

    It replaces the Trainer's own uploads. There, an unreachable Hub ends the run before its first step, and a
    failed upload during training goes unnoticed. Here, each failure is a warning, training goes on, and
    `finish` says what to do. Uploads during training run in a thread. A checkpoint that is saved while
    another is uploaded is skipped, unless `hub_always_push` is set.

    Use it as a context manager around training and `finish`: if a signal stops the process during an upload,
    the process ends within `hf_lpwd.vision.hub.patience.GRACE` seconds and does not wait for the Hub.

    Examples:
        >>> with PushCallback(args) as push:  # doctest: +SKIP
        ...     LPWDTrainer(model=model, args=args, train_dataset=dataset, callbacks=[push]).train()
        ...     print(push.finish())

    Args:
        args: The Trainer's arguments, with `push_to_hub` off, so that the Trainer itself does not upload.
        token: For the Hub, where `args.hub_token` is not set.

    Raises:
        ValueError: `hub_model_id` cannot be the name of a repository, or `push_to_hub` is on.
    """

    def __init__(self, args: TrainingArguments, token: str | None = None) -> None:
        self.folder = Path(str(args.output_dir))
        self.repo_id = args.hub_model_id or self.folder.absolute().name
        validate_repo_id(self.repo_id)
        if args.push_to_hub:
            raise ValueError("push_to_hub is on: with PushCallback, the Trainer must not upload too")
        self.options = {
            "token": args.hub_token or token,
            "private": args.hub_private_repo,
            "revision": args.hub_revision,
        }
        self.strategy = HubStrategy(args.hub_strategy)
        self.always = args.hub_always_push
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="push")
        self.last: Future[Any] | None = None

    def __enter__(self) -> PushCallback:
        return self

    def __exit__(self, kind: Any, end: BaseException | None, trace: Any) -> None:
        self.thread.shutdown(wait=False, cancel_futures=end is not None)
        if isinstance(end, SystemExit) and self.last is not None and not self.last.done():
            leave_within_grace(end.code if isinstance(end.code, int) else 1)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Makes the repository, so that a wrong token is known at the start."""
        if state.is_world_process_zero:
            self.last = self.thread.submit(self._push, None, "")

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Starts the upload of the checkpoint that was saved just now."""
        busy = self.last is not None and not self.last.done()
        if self.strategy == HubStrategy.END or not state.is_world_process_zero or (busy and not self.always):
            return
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        message = f"Training in progress, step {state.global_step}"
        self.last = self.thread.submit(self._push, checkpoint, message)

    def _push(self, checkpoint: Path | None, message: str) -> None:
        try:
            files = {} if checkpoint is None else files_to_push(checkpoint)
            if checkpoint and self.strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                place = "last-checkpoint" if self.strategy == HubStrategy.CHECKPOINT else checkpoint.name
                whole = files_to_push(checkpoint, [checkpoint])
                files |= {f"{place}/{name}": path for name, path in whole.items()}
            upload(files, self.repo_id, message=message, **self.options)
        except (PushError, OSError, ValueError) as error:
            logger.warning_once(f"{error}; training goes on, and each save tries again")

    def finish(self) -> str:
        """Does as `push_run`, after the uploads under way."""
        self.last = finished = self.thread.submit(push_run, self.folder, self.repo_id, **self.options)
        # Waited for in a thread, as a signal would else wait for the Hub's answer.
        return finished.result()


def push_run(folder: Path, repo_id: str, **options: Any) -> str:
    """Uploads a finished run, with the options of `upload`; returns the address of the commit.

    Raises:
        PushError: It did not succeed; the message says how to do it later.
    """
    try:
        return upload(files_to_push(folder), repo_id, message="End of training", **options)[0]
    except (PushError, ValueError) as error:
        command = shlex.join(["hf-lpwd", "push", str(folder), repo_id])
        raise PushError(f"{error}; the run is saved, and this uploads it: {command}") from error
