"""The trainer of the main job: finishes and mixes batches of images on the device that trains."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hf_lpwd.checkpoints.mixin import CompleteCheckpointsMixin
from hf_lpwd.trainer import LPWDTrainer
from hf_lpwd.training_args import LPWDTrainingArguments
from hf_lpwd.vision.data.augmentation import Mixer, mixed_loss
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

    def try_batch(self, most: int = 16) -> tuple[float, float, list[str]]:
        """Computes the gradients of some training images, to learn what a step takes; changes nothing.

        The model is in evaluation mode and keeps no gradient: weights, statistics and random numbers stay.

        Args:
            most: Images to use, if a batch has more.

        Returns:
            Seconds to load an image, seconds for its forward and backward pass, and the names of the
            parameters without a gradient.
        """
        device, training = self.args.device, self.model.training
        rows = range(min(self.args.train_batch_size, most, len(self.train_dataset)))
        names, parameters = zip(
            *((name, part) for name, part in self.model.named_parameters() if part.requires_grad),
            strict=True,
        )
        self.model.eval()
        with torch.random.fork_rng(devices=[]):
            for _ in range(2):  # the first one warms up
                start = time.perf_counter()
                batch = self.data_collator(self.train_dataset.__getitems__(list(rows)))
                loaded = time.perf_counter()
                with self.accelerator.autocast():
                    loss = self.compute_loss(self.model, self._prepare_inputs(batch))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                if device.type != "cpu":
                    torch.accelerator.synchronize()
                end = time.perf_counter()
        self.model.train(training)
        unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
        return (loaded - start) / len(rows), (end - loaded) / len(rows), unused

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
