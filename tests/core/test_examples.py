"""The examples in the docstrings of the core run and give what they show."""

import doctest
from importlib import import_module

import pytest

import hf_lpwd

MODULES = sorted({getattr(hf_lpwd, name).__module__ for name in hf_lpwd.__all__})


def test_everything_exported_has_an_example():
    assert [name for name in hf_lpwd.__all__ if ">>> " not in getattr(hf_lpwd, name).__doc__] == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Trainers make their folders
    results = doctest.testmod(import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
