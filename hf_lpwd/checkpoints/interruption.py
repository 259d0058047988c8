"""Ctrl-C and SIGTERM: a checkpoint at the end of the step, and out."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import active_children, util
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ended the run; uncaught, it ends the process with exit code 128 + signal, without traceback.

    Attributes:
        signum: The signal.
        checkpoint: The folder of the checkpoint that was saved, None if there was no time or need.
    """

    def __init__(self, signum: int, checkpoint: str | None = None) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        saved = f", saved in {self.checkpoint}" if self.checkpoint else ""
        return (
            f"stopped by {self.signum.name}{saved}; to go on: the same command with "
            "--resume_from_checkpoint True"
        )


class StopOnSignal(TrainerCallback):
    """Ends training by a checkpoint when SIGINT (Ctrl-C) or SIGTERM (SLURM, spot instances) arrives.

    ``with StopOnSignal() as stop: LPWDTrainer(..., callbacks=[stop]).train()``. During training, the step is
    finished, what is due at its end is done, a checkpoint is saved, and `Interrupted` is raised. Before and
    after training, and at a second Ctrl-C, `Interrupted` is raised at once. A resumed run computes the same
    as one that was never stopped. Several processes stop at the same step if the signal reaches one of them.

    Python handles signals in the main thread only; in another one this does nothing.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._training = self._stopping = False
        self._pid = os.getpid()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            # What a shell starts in the background ignores Ctrl-C, and goes on to do so.
            heard = [signum for signum in SIGNALS if signal.getsignal(signum) not in (signal.SIG_IGN, None)]
            self._handlers = {signum: signal.signal(signum, self._handle) for signum in heard}
            util.Finalize(None, _end_workers, exitpriority=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._hold(False)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # A Ctrl-C reaches the forked workers of a DataLoader too; the process that trains will end them.
        if os.getpid() != self._pid:
            return
        # SLURM and torchrun may both send SIGTERM: only Ctrl-C is a person who does not want to wait.
        if not self._training or (self._signum and signum == signal.SIGINT):
            raise Interrupted(signum)
        self._signum = self._signum or signum

    def _hold(self, hold: bool) -> None:
        """Delays SIGTERM, also in processes that are forked meanwhile.

        SLURM sends it to the workers of a DataLoader as well; if one dies of it, so does the training.
        """
        if self._handlers and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, {signal.SIGTERM})

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delays SIGTERM until the workers are there."""
        self._hold(True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets SIGTERM come."""
        self._hold(False)

    on_evaluate = on_step_begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes signals wait for the end of the step."""
        self._training = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets signals end the process at once."""
        self._hold(False)
        self._training = False
        if self._signum:
            raise Interrupted(self._signum)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves if a signal came; after an epoch's last step `on_epoch_end` does, once it is evaluated."""
        self._hold(control.should_evaluate)
        epoch_is_over = state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps
        if self._came(args) and not epoch_is_over:
            self._stopping = control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves if a signal came."""
        self._hold(control.should_evaluate)
        if self._came(args):
            self._stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `Interrupted` where a checkpoint was saved to stop."""
        if self._stopping:
            self._training = False
            folder = os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            raise Interrupted(self._signum, folder)

    def _came(self, args: Any) -> bool:
        """Whether a signal has reached any of the processes."""
        if args.world_size > 1:
            highest = torch.tensor(self._signum, device=args.device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            self._signum = int(highest)
        return bool(self._signum)


def _end_workers() -> None:
    """Ends workers that an error left behind; multiprocessing would send them SIGTERM and wait forever.

    They were forked while SIGTERM was delayed, and delay it to their end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises where a worker is killed
    workers = [child for child in active_children() if child.daemon]
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + 1.0
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
