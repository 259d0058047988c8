"""The examples in docstrings run and give what they show."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "vision.data.decoding",
    "vision.data.facts",
    "vision.data.labels",
    "vision.data.split_names",
    "vision.evaluation",
    "vision.training_args",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    results = doctest.testmod(import_module(f"hf_lpwd.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
