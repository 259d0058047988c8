"""What `Trainer` calls to turn logits into metrics."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Returns accuracy, macro F1 and, with more than five classes, top-5 accuracy of a whole split.

    See `ClassificationMetrics` for the definitions. Works offline; leaves no file behind. `prediction` has
    logits [N, C], alone or first in a tuple, and labels [N].
    """
    from hf_lpwd.vision.classification_metrics import ClassificationMetrics

    # evaluate makes a folder even for a metric that it keeps in memory.
    with tempfile.TemporaryDirectory() as folder:
        metric = ClassificationMetrics(keep_in_memory=True, cache_dir=folder)
        metric.add_batch(predictions=logits_only(prediction.predictions), references=prediction.label_ids)
        return metric.compute()


def logits_only(outputs: Tensor | tuple[Tensor, ...], labels: Tensor | None = None) -> Tensor:
    """Returns the logits of a model that gives more than them; for `preprocess_logits_for_metrics`."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
