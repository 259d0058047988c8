"""A trained model that classifies images, as `hf-lpwd predict` and `hf-lpwd evaluate` use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_lpwd.files import RUN_FACTS
from hf_lpwd.vision.data.decoding import Scale, read_images
from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.models import load_trained


class Classifier:
    """A trained model with the image processor of its run, on an accelerator if there is one.

    Images are decoded and transformed as those of the validation split during training, so that the scores
    are those of ``pipeline("image-classification")``.

    Args:
        name: Output folder of a run, one of its checkpoints, or a model's name on the Hub.

    Attributes:
        class_names: Name of each class, in the order of the logits.
        scale: Which stored values of more than 8 bits are white, as in the run's training; None if unknown.

    Raises:
        BadInputError: There is no such model, or it has no trained head for single-label classification.
    """

    def __init__(self, name: str) -> None:
        model, processor, self.class_names = load_trained(name)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self._model = model.eval().to(accelerator or torch.device("cpu"))
        self._transform = ImageTransform(processor)
        self.scale = saved_scale(Path(name))

    def logits(
        self, cells: Iterable[dict[str, Any] | None], batch_size: int = 32, scale: Scale | None = None
    ) -> Iterator[Tensor | ValueError]:
        """Yields the logits float32 [C] of each image, or the error of an image that cannot be decoded.

        Args:
            cells: Images as an undecoded `datasets.Image` column holds them.
            batch_size: How many are classified at once.
            scale: Which stored values of more than 8 bits are white, in all of them; default: as in the run's
                training.
        """
        remaining, scale = iter(cells), scale or self.scale or Scale()
        while batch := list(islice(remaining, batch_size)):
            threads = torch.get_num_threads()
            decoded = list(read_images(batch, [None] * len(batch), threads=threads, scale=scale))
            images = [torch.from_numpy(image) for image in decoded if not isinstance(image, ValueError)]
            logits = iter(self._classify(images)) if images else iter(())
            for image in decoded:
                yield image if isinstance(image, ValueError) else next(logits)

    @torch.inference_mode()
    def _classify(self, images: list[Tensor]) -> Tensor:
        same_size = len({image.shape for image in images}) == 1
        pixel_values = self._transform(torch.stack(images) if same_size else images)
        return self._model(pixel_values.to(self._model.device, self._model.dtype)).logits.float().cpu()


def saved_scale(run: Path) -> Scale | None:
    """Returns the scale of the images of a run (its folder or a checkpoint); None if it does not say."""
    file = next((folder / RUN_FACTS for folder in (run, run.parent) if (folder / RUN_FACTS).is_file()), None)
    images = (json.loads(file.read_text("utf-8")).get("data") or {}).get("images") if file else None
    return Scale(**images["scale"]) if images and images["scale"] else None
