"""The examples in the docstrings of the core run and give what they show."""

import doctest
from importlib import import_module

import pytest

MODULES = ["config", "factory", "layers", "measure", "optimizer", "plan", "lpwd_arguments"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    results = doctest.testmod(import_module(f"hf_lpwd.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
