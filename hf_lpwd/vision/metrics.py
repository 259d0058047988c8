"""What `Trainer` calls to turn logits into metrics, and the `evaluate.Metric` behind it."""

from __future__ import annotations

import tempfile

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from torch import Tensor
from transformers import EvalPrediction

_DESCRIPTION = "Accuracy, top-5 accuracy (with more than five classes) and macro F1 of class scores."
_INPUTS = """
Args:
    predictions (`list` of `list` of `float`): Scores (logits) of every class, for each image.
    references (`list` of `int`): Label of each image.
"""
_CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, top-5 accuracy and macro F1 of logits [N, C] against labels [N], all in 0..1.

    `accuracy` and `f1_macro` are scikit-learn's `accuracy_score` and `f1_score(average="macro")` of the class
    with the highest logit, which is how the Hub's `accuracy` and `f1` are defined: the mean is over the
    classes that occur among labels or predictions. `top5_accuracy`, with more than five classes, is
    scikit-learn's `top_k_accuracy_score(k=5)`. NaN, from a model that diverged, counts as the lowest logit.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        scores = np.nan_to_num(np.asarray(predictions, dtype=np.float32), nan=float(np.finfo(np.float32).min))
        classes = scores.argmax(axis=1)
        results = {
            "accuracy": accuracy_score(references, classes),
            "f1_macro": f1_score(references, classes, average="macro", zero_division=0),
        }
        num_classes = scores.shape[1]
        if num_classes > 5:
            results["top5_accuracy"] = top_k_accuracy_score(
                references, scores, k=5, labels=np.arange(num_classes)
            )
        return {name: float(value) for name, value in results.items()}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the `ClassificationMetrics` of a whole split; works offline and leaves no file behind.

    `prediction` has logits [N, C], alone or first in a tuple, and labels [N].
    """
    # evaluate makes a folder even for a metric that it keeps in memory.
    with tempfile.TemporaryDirectory() as folder:
        metric = ClassificationMetrics(keep_in_memory=True, cache_dir=folder)
        metric.add_batch(predictions=logits_only(prediction.predictions), references=prediction.label_ids)
        return metric.compute()


def logits_only(outputs: Tensor | tuple[Tensor, ...], labels: Tensor | None = None) -> Tensor:
    """Returns the logits of a model that gives more than them; for `preprocess_logits_for_metrics`."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
