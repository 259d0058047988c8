"""The examples in the docstrings of the core run and give what they show."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["config", "factory", "layers", "optimizer", "plan", "lpwd_arguments"])
def test_examples_of(name):
    results = doctest.testmod(import_module(f"hf_lpwd.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
