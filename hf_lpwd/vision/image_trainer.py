"""The trainer of the main job: finishes and mixes batches of images on the device that trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hf_lpwd.checkpoints.mixin import CompleteCheckpointsMixin
from hf_lpwd.trainer import LPWDTrainer
from hf_lpwd.training_args import LPWDTrainingArguments
from hf_lpwd.vision.data.batch_augmentation import Mixer, mixed_loss
from hf_lpwd.vision.data.transforms import ImageTransform


class ImageTrainer(CompleteCheckpointsMixin, LPWDTrainer):
    """`LPWDTrainer` for batches of `ImageDataset`, with checkpoints that are complete or absent.

    Args:
        args: How to train.
        transform: Finishes batches that were left unfinished for the device.
        mix: MixUp or CutMix of training batches, see `make_mixer`.
        **kwargs: For the Trainer.
    """

    args: LPWDTrainingArguments

    def __init__(
        self,
        *,
        args: LPWDTrainingArguments,
        transform: ImageTransform,
        mix: Mixer | None = None,
        **kwargs: Any,
    ) -> None:
        if mix is not None:
            # The Trainer's own losses take no probabilities.
            kwargs["compute_loss_func"] = partial(mixed_loss, label_smoothing=args.label_smoothing_factor)
        super().__init__(args=args, **kwargs)
        self._transform = transform
        self._mix = mix

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor | Any]) -> dict[str, torch.Tensor | Any]:
        batch = self._transform.finish(super()._prepare_inputs(inputs))
        if self._mix is not None and self.model.training:
            batch["pixel_values"], batch["labels"] = self._mix(batch["pixel_values"], batch["labels"])
        # Once more for DeepSpeed, which wants its own floating point type.
        batch["pixel_values"] = self._prepare_input(batch["pixel_values"])
        return batch

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Returns a loader of every image of `eval_dataset`.

        With persistent workers, Trainer keeps the first loader and gives it for any dataset that comes after.
        """
        with self._nothing_dropped():
            if eval_dataset is None or eval_dataset is self.eval_dataset:
                return super().get_eval_dataloader()
            return super().get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Returns a loader of every image of `test_dataset`."""
        with self._nothing_dropped():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _nothing_dropped(self) -> Iterator[None]:
        # `dataloader_drop_last` would leave images out of an evaluation, which still counts them.
        args = self.args
        self.args = copy.copy(args)
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.args = args
