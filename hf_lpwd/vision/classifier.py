"""A trained model that classifies images, as `hf-lpwd predict` and `hf-lpwd evaluate` use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging

from hf_lpwd.files import RUN_FACTS
from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.decoding import Scale, read_images
from hf_lpwd.vision.data.transforms import ImageTransform


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
        model, processor = load_trained(name)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self._model = model.eval().to(accelerator or torch.device("cpu"))
        self._transform = ImageTransform(processor)
        self.scale = saved_scale(Path(name))
        self.class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def logits(
        self, cells: Iterable[dict[str, Any] | None], batch_size: int = 32
    ) -> Iterator[Tensor | ValueError]:
        """Yields the logits float32 [C] of each image, or the error of an image that cannot be decoded.

        Args:
            cells: Images as an undecoded `datasets.Image` column holds them: ``{"bytes": ..., "path": ...}``.
            batch_size: How many are decoded and classified at once.
        """
        remaining = iter(cells)
        while batch := list(islice(remaining, batch_size)):
            threads = torch.get_num_threads()
            decoded = list(read_images(batch, [None] * len(batch), threads=threads, scale=self.scale))
            images = [torch.from_numpy(image) for image in decoded if not isinstance(image, ValueError)]
            logits = iter(self._classify(images)) if images else iter(())
            for image in decoded:
                yield image if isinstance(image, ValueError) else next(logits)

    @torch.inference_mode()
    def _classify(self, images: list[Tensor]) -> Tensor:
        same_size = len({image.shape for image in images}) == 1
        pixel_values = self._transform(torch.stack(images) if same_size else images)
        return self._model(pixel_values.to(self._model.device, self._model.dtype)).logits.float().cpu()


def load_trained(name: str, **hub_options: Any) -> tuple[PreTrainedModel, Any]:
    """Loads a classifier whose every weight was trained, and its image processor.

    Args:
        name: As for `Classifier`.
        **hub_options: For `from_pretrained`: `cache_dir`, `revision`, `token`, `trust_remote_code`.

    Raises:
        BadInputError: There is no such model, its head is not in the checkpoint, or it is a model for several
            labels an image or for regression.
    """
    folder = Path(name).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInputError(f"{name} holds no trained model: name the output_dir of a run of hf-lpwd train")
    source = str(folder) if folder.exists() else name
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            source, output_loading_info=True, **hub_options
        )
        processor = AutoImageProcessor.from_pretrained(source, **hub_options)
    except (OSError, RuntimeError, ValueError) as error:
        here = "" if folder.exists() else "there is no such folder here, and of the Hub: "
        why = " ".join(str(error).split())[:200]
        raise BadInputError(f"the model {name} cannot be loaded: {here}{why}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise BadInputError(
            f"{name} has no trained weights for {missing}: fine-tune it first with hf-lpwd train"
        )
    if model.config.problem_type not in (None, "single_label_classification"):
        raise BadInputError(f"{name} is a model for {model.config.problem_type}, not for one class an image")
    return model, processor


def saved_scale(run: Path) -> Scale | None:
    """Returns which stored values of more than 8 bits are white in a run's images; None if it does not say.

    Args:
        run: The output folder of a run, or one of its checkpoints.
    """
    file = next((folder / RUN_FACTS for folder in (run, run.parent) if (folder / RUN_FACTS).is_file()), None)
    images = (json.loads(file.read_text("utf-8")).get("data") or {}).get("images") if file else None
    return Scale(**images["scale"]) if images and images["scale"] else None
