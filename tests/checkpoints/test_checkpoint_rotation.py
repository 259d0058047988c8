"""Old checkpoints are removed as the stock Trainer removes them, but never half; replaced ones come back."""

import itertools
import shutil

import pytest
from transformers.trainer_utils import rotate_checkpoints

from hf_lpwd.checkpoints import mixin as checkpoints


def make_folders(folder, steps):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "model.safetensors").touch()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
def test_the_same_ones_stay_as_with_the_stock_trainer(tmp_path):
    steps = [5, 10, 15, 20]
    for limit, best in itertools.product([None, 0, 1, 2, 3, 4, 5], [None, *steps]):
        ours, stock = (make_folders(tmp_path / f"{who}-{limit}-{best}", steps) for who in ("ours", "stock"))
        bests = [best and str(folder / f"checkpoint-{best}") for folder in (ours, stock)]
        checkpoints.remove_oldest(ours, limit, bests[0])
        rotate_checkpoints(str(stock), limit, bests[1], use_mtime=True)
        assert names(ours) == names(stock), (limit, best)


def test_without_a_limit_checkpoints_are_not_even_looked_at(tmp_path, monkeypatch):
    """Sorting them warns where they were written within a second."""
    monkeypatch.setattr(checkpoints, "sort_checkpoints", None)
    folder = make_folders(tmp_path, [5, 10])
    for limit in (None, 0, -1):
        checkpoints.remove_oldest(folder, limit, None)
    assert names(folder) == ["checkpoint-10", "checkpoint-5"]


def test_killed_while_it_removes_one_none_is_half_there(tmp_path, monkeypatch):
    folder = make_folders(tmp_path, [5, 10, 15])

    def killed(path, ignore_errors):
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove_oldest(folder, 1, None)
    monkeypatch.undo()
    assert names(folder) == [checkpoints.OUTDATED, "checkpoint-10", "checkpoint-15"]
    checkpoints.remove_oldest(folder, 1, None)
    assert names(folder) == ["checkpoint-15"]


def test_one_that_another_process_puts_back_meanwhile_is_there(tmp_path, monkeypatch):
    replaced = make_folders(tmp_path / checkpoints.UNFINISHED / "replaced", [5]) / "checkpoint-5"

    def put_back_by_another(path):
        replaced.rename(tmp_path / "checkpoint-5")

    monkeypatch.setattr(checkpoints, "damage", put_back_by_another)
    checkpoints.put_back_replaced(str(tmp_path))
    assert (tmp_path / "checkpoint-5" / "model.safetensors").exists()
