"""A `Trainer` whose checkpoints and results are complete or absent, however its process ends."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_lpwd.checkpoints import folders
from hf_lpwd.checkpoints.corruption import why_corrupt
from hf_lpwd.checkpoints.folders import UNFINISHED, checkpoint_of
from hf_lpwd.files import write_bytes, write_json
from hf_lpwd.messages import BadInputError

#: Figures of `Trainer` that, after resuming, cover only the last part of a run.
_FIGURES = ("train_loss", "train_samples_per_second", "train_steps_per_second")

logger = logging.get_logger(__name__)


class CompleteCheckpointsMixin(Trainer):
    """Writes each file under another name and renames it once complete; resumes from complete ones only.

    `Trainer` alone writes into ``checkpoint-N`` file by file, so that a run killed meanwhile leaves a folder
    from which it cannot go on. ``class Mine(CompleteCheckpointsMixin, Trainer)``.

    Attributes:
        run_settings: What identifies the run, saved in each checkpoint; see `hf_lpwd.checkpoints.run_record`.
    """

    run_settings: Mapping[str, Any] | None = None
    _initial_global_step: int
    #: While a checkpoint is written, the folder in which it is.
    _unfinished: str | None = None
    #: The checkpoint that the run goes on from, and the best one of its run so far.
    _resumed_from: str | None = None
    _best: str | None = None
    #: Loss and seconds up to there; None if not known.
    _before: dict[str, float] | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as `Trainer.train` does.

        `resume_from_checkpoint` is a checkpoint's folder, or True for `last_complete_checkpoint`.

        Raises:
            ValueError: There is no complete checkpoint, or the named one is corrupt; a `BadInputError` then
                says what is wrong with it and which one is complete. Or the best checkpoint so far, which is
                to be loaded at the end, is missing or corrupt.
        """
        output_dir = str(self.args.output_dir)
        if self.is_local_process_zero():
            folders.remove_unfinished(output_dir)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_complete_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint is True, but {output_dir} has no complete checkpoint"
                )
        elif resume_from_checkpoint:
            self._refuse_if(partial(folders.why_not_resumable, resume_from_checkpoint))
        first = self.is_world_process_zero()
        if first and resume_from_checkpoint and not folders.has_optimizer(resume_from_checkpoint):
            logger.warning(
                f"{resume_from_checkpoint} has no state of the optimizer (save_only_model), which starts "
                "afresh: the weights will not be those of a run without interruption"
            )
        self._resumed_from = os.fspath(resume_from_checkpoint) if resume_from_checkpoint else None
        self._best = self._before = None
        if self._resumed_from and self.args.load_best_model_at_end:
            self._best = self._best_so_far(self._resumed_from)
        self._start = time.time()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def last_complete_checkpoint(self) -> str | None:
        """Returns the newest complete checkpoint in `output_dir`, agreed on by all processes, or None."""
        return self._agreed(partial(folders.last_complete, str(self.args.output_dir)))

    def _agreed(self, find: Callable[[], Any]) -> Any:
        """Returns in all processes what the first one finds."""
        return broadcast_object_list([find() if self.is_world_process_zero() else None])[0]

    def _refuse_if(self, reason: Callable[[], str | None]) -> None:
        if (found := self._agreed(reason)) is not None:
            raise BadInputError(found)

    def _best_so_far(self, checkpoint: str) -> str | None:
        """Finds the best checkpoint by its step, next to `checkpoint`: the folder may have moved."""
        state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        step, recorded = state.get("best_global_step"), state.get("best_model_checkpoint")
        if not step:
            return None
        best = str(checkpoint_of(Path(checkpoint).parent, step))
        if not os.path.isdir(best) and recorded and _is_of_history(recorded, state["log_history"]):
            best = recorded
        self._refuse_if(partial(_why_not_best, best, step))
        here = os.path.abspath(checkpoint_of(str(self.args.output_dir), step))
        if {os.path.abspath(best), os.path.abspath(recorded or best)} != {here}:
            logger.warning_once(f"the best checkpoint so far, of step {step}, is {best}")
        return best

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found = super()._init_training_state(max_steps, *args, **kwargs)
        if self._best:
            self.state.best_model_checkpoint = self._best
        if self._resumed_from:
            state = json.loads(Path(self._resumed_from, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            if state["global_step"] >= max_steps and state["max_steps"] != max_steps:
                raise BadInputError(
                    f"resume_from_checkpoint is {self._resumed_from!r}, but that is step "
                    f"{state['global_step']} of {state['max_steps']}, and this run ends at step {max_steps}: "
                    "there is nothing left to train"
                )
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer would take one step more than max_steps if the last one is not the end of an epoch.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        self._take_up_progress()
        super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        # What is loaded at the end has to be saved, also where evaluations are more frequent than saves.
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self._take_up_progress()
        if self.args.load_best_model_at_end and self.state.best_global_step:
            best = self.state.best_model_checkpoint
            self._refuse_if(partial(_why_not_best, best, self.state.best_global_step))
        limit = self.args.save_total_limit
        resumed_at = self._initial_global_step
        # Trainer would delete checkpoints in place.
        self.args.save_total_limit = None
        if self._before is not None:
            # The figures then cover the complete run.
            self._initial_global_step, start_time = 0, start_time - self._before["seconds"]
        try:
            result = super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit, self._initial_global_step = limit, resumed_at
        if self._resumed_from and self._before is None:
            for name in _FIGURES:
                result.metrics.pop(name, None)
                self.state.log_history[-1].pop(name, None)
        return result

    def _take_up_progress(self) -> None:
        """Goes on with the loss so far, so that a resumed run logs what an uninterrupted one does."""
        if not self._resumed_from or self._before is not None:
            return
        path = self._progress(self._resumed_from)
        if path.exists():
            self._before = json.loads(path.read_text(encoding="utf-8"))
            self._tr_loss += self._before["loss_since_logged"]
            self._total_loss_scalar = self._before["loss_logged"]
            self._globalstep_last_logged = int(self._before["logged_step"])

    def _progress(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"progress_{self.args.process_index}.json")

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        progress = {
            "loss_since_logged": self._tr_loss.item(),
            "loss_logged": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
            "seconds": time.time() - self._start + (self._before or {"seconds": 0.0})["seconds"],
        }
        write_json(self._progress(output_dir), progress)

    def _get_output_dir(self, trial: Any) -> str:
        return self._unfinished or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Uploads run on in the background, and have to find the checkpoint at its own place.
        if self._unfinished is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        unfinished, checkpoint = run_dir / UNFINISHED, checkpoint_of(run_dir, self.state.global_step)
        if self.is_local_process_zero():
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._unfinished = str(unfinished)
            super()._save_checkpoint(model, trial)
            if self.state.best_global_step:
                best = checkpoint_of(run_dir, self.state.best_global_step)
                if best == checkpoint or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / checkpoint.name / TRAINER_STATE_NAME))
            # The second turn is for machines that do not share the first one's disk.
            for my_turn in (self.args.should_save, self.is_local_process_zero()):
                if my_turn and (unfinished / checkpoint.name).is_dir():
                    folders.finish(unfinished / checkpoint.name, checkpoint, self.run_settings)
                self.accelerator.wait_for_everyone()
        except BaseException:
            if self.is_local_process_zero():
                folders.put_back_replaced(run_dir)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        finally:
            self._unfinished = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint)
            folders.remove_oldest(run_dir, self.args.save_total_limit, checkpoint, best)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves as `Trainer.save_model` does, in another folder first, and under FSDP always all weights."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        written = folder / UNFINISHED
        if self.is_local_process_zero():
            shutil.rmtree(written, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            # Trainer would save nothing.
            self._save(str(written), state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(str(written), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folders.move_files(written, folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Saves as `Trainer.save_metrics` does, under another name first."""
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        write_json(folder / f"{split}_results.json", dict(sorted(metrics.items())))
        if combined:
            path = folder / "all_results.json"
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                known = {}
            write_json(path, dict(sorted({**known, **metrics}.items())))

    def save_state(self) -> None:
        """Saves as `Trainer.save_state` does, under another name first."""
        if self.is_world_process_zero():
            text = json.dumps(asdict(self.state), indent=2, sort_keys=True) + "\n"
            write_bytes(Path(str(self.args.output_dir), TRAINER_STATE_NAME), text.encode())


def _is_of_history(checkpoint: str, history: list[dict[str, float]]) -> bool:
    """Whether a checkpoint of another folder was on the way: a run of the same name may have replaced it."""
    try:
        text = Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8")
        there = json.loads(text)["log_history"]
    except (OSError, ValueError, KeyError):
        return False
    return there == history[: len(there)]


def _why_not_best(best: str | None, step: int) -> str | None:
    fault = why_corrupt(best) if best and os.path.isdir(best) else "it is missing"
    if fault is None:
        return None
    return (
        f"the checkpoint of step {step}, the best so far, cannot be loaded at the end ({best}: {fault}): put "
        "it back, or keep the last weights instead with --load_best_model_at_end False"
    )
