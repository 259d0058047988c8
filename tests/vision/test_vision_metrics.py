from __future__ import annotations

import os
import tempfile
import threading

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from transformers import EvalPrediction

from hf_lpwd.vision.metrics import ClassificationMetrics, compute_metrics, logits_only


def random_case(count, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, num_classes)).astype(np.float32), rng.integers(0, num_classes, count)


def macro_f1(labels, predictions):
    """The definition: harmonic mean of precision and recall of each class that occurs, averaged."""
    scores = []
    for label in sorted({*labels, *predictions}):
        hits = sum(a == b == label for a, b in zip(labels, predictions, strict=True))
        scores.append(2 * hits / (sum(labels == label) + sum(predictions == label)))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(("count", "num_classes"), [(200, 10), (57, 6), (3, 100), (40, 5), (10, 2)])
def test_equals_scikit_learn_and_the_definitions(count, num_classes):
    logits, labels = random_case(count, num_classes)
    predictions = logits.argmax(axis=1)
    actual = compute_metrics(EvalPrediction(logits, labels))
    expected = {
        "accuracy": accuracy_score(labels, predictions),
        "f1_macro": f1_score(labels, predictions, average="macro", zero_division=0),
    }
    if num_classes > 5:
        expected["top5_accuracy"] = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(num_classes))
        rank = (logits > logits[np.arange(count), labels][:, None]).sum(axis=1)
        assert actual["top5_accuracy"] == (rank < 5).mean()
    assert actual == expected
    assert actual["accuracy"] == (predictions == labels).mean()
    assert actual["f1_macro"] == pytest.approx(macro_f1(labels, predictions), abs=1e-12)
    assert all(type(value) is float for value in actual.values())


def test_known_values():
    logits = np.array([[3, 0, 0], [0, 3, 0], [0, 3, 0], [3, 0, 0]], dtype=np.float32)
    actual = compute_metrics(EvalPrediction(logits, np.array([0, 1, 0, 2])))
    # f1 of the classes: 2*1/(2+2), 2*1/(1+2), 0.
    assert actual == {"accuracy": 0.5, "f1_macro": pytest.approx((0.5 + 2 / 3 + 0) / 3)}


def test_logits_that_are_not_numbers_count_as_the_lowest():
    logits = np.array([[np.nan, 9, 0, 0, 0, 0], [np.nan, 5, 4, 3, 2, 1]], dtype=np.float32)
    actual = compute_metrics(EvalPrediction(logits, np.array([1, 0])))
    assert actual == {"accuracy": 0.5, "f1_macro": pytest.approx(1 / 3), "top5_accuracy": 0.5}


def test_logits_may_come_first_in_a_tuple():
    logits, labels = random_case(20, 7)
    alone = compute_metrics(EvalPrediction(logits, labels))
    assert compute_metrics(EvalPrediction((logits, np.zeros((20, 3))), labels)) == alone
    tensor = torch.zeros(2, 3)
    assert logits_only((tensor, torch.ones(2)), torch.ones(2)) is tensor
    assert logits_only(tensor, torch.ones(2)) is tensor


def test_the_metric_takes_batches_and_starts_again(tmp_path):
    logits, labels = random_case(30, 8)
    metric = ClassificationMetrics(cache_dir=str(tmp_path))
    for start in range(0, 30, 10):
        metric.add_batch(predictions=logits[start : start + 10], references=labels[start : start + 10])
    whole = metric.compute()
    assert whole == compute_metrics(EvalPrediction(logits, labels))
    again = metric.compute(predictions=logits[:10], references=labels[:10])
    assert again == compute_metrics(EvalPrediction(logits[:10], labels[:10]))


def test_the_metric_gathers_over_processes(tmp_path):
    logits, labels = random_case(30, 8)
    results = {}

    def run(process):
        metric = ClassificationMetrics(
            cache_dir=str(tmp_path), num_process=2, process_id=process, experiment_id="both", seed=0
        )
        metric.add_batch(predictions=logits[process::2], references=labels[process::2])
        results[process] = metric.compute()

    threads = [threading.Thread(target=run, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] is None
    assert results[0] == pytest.approx(compute_metrics(EvalPrediction(logits, labels)), abs=1e-12)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compute_metrics(EvalPrediction(*random_case(10, 6)))
    assert os.listdir(tmp_path) == []
