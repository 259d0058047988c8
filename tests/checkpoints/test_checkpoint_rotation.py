"""Old checkpoints are removed as the stock Trainer removes them, but never half; replaced ones come back."""

import itertools
import os
import shutil

import pytest
from transformers.trainer_utils import rotate_checkpoints

from hf_lpwd.checkpoints import folders
from hf_lpwd.checkpoints.folders import checkpoints_in, remove_oldest
from hf_lpwd.checkpoints.run_record import write_record
from hf_lpwd.files import SAVED_FILES


def make_folders(folder, steps, settings=None):
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("model.safetensors", SAVED_FILES):
            (checkpoint / name).touch()
        if settings is not None:
            write_record(checkpoint, settings)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
def test_the_same_ones_stay_as_with_the_stock_trainer(tmp_path):
    steps = [5, 10, 15, 20]
    for limit, best in itertools.product([None, 0, 1, 2, 3, 4, 5], [None, *steps]):
        ours, stock = (make_folders(tmp_path / f"{who}-{limit}-{best}", steps) for who in ("ours", "stock"))
        bests = [best and folder / f"checkpoint-{best}" for folder in (ours, stock)]
        remove_oldest(ours, limit, ours / "checkpoint-20", bests[0])
        rotate_checkpoints(str(stock), limit, bests[1] and str(bests[1]), use_mtime=True)
        assert names(ours) == names(stock), (limit, best)


def test_a_clock_that_goes_back_changes_nothing(tmp_path):
    make_folders(tmp_path, [5, 10, 100])
    for step, seconds in ((5, 300), (10, 200), (100, 100)):
        os.utime(tmp_path / f"checkpoint-{step}", (seconds, seconds))
    remove_oldest(tmp_path, 2, tmp_path / "checkpoint-100")
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]


def test_only_what_the_run_made_is_removed(tmp_path):
    """No folders of a similar name, no checkpoints of other runs, and no later ones of an earlier attempt."""
    make_folders(tmp_path, [10, 15, 30], {"seed": 1})
    make_folders(tmp_path, [12], {"seed": 2})
    make_folders(tmp_path, ["mine", "5-mine", "5.bak"], {"seed": 1})
    (tmp_path / "damaged-checkpoint-5").mkdir()
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-7").touch()
    others = {"checkpoint-12", "checkpoint-30", "checkpoint-5-mine", "checkpoint-5.bak", "checkpoint-mine"}
    others |= {"damaged-checkpoint-5", "checkpoint-6", "checkpoint-7"}
    remove_oldest(tmp_path, 1, tmp_path / "checkpoint-15")
    assert set(names(tmp_path)) == others | {"checkpoint-15"}
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (6, 12, 15, 30)]


def test_a_run_that_goes_on_longer_or_on_other_devices_removes_its_older_checkpoints(tmp_path):
    make_folders(tmp_path, [5], {"seed": 1, "num_train_epochs": 1.0, "devices": 2})
    make_folders(tmp_path, [10], {"seed": 1, "num_train_epochs": 3.0, "devices": 1})
    remove_oldest(tmp_path, 1, tmp_path / "checkpoint-10")
    assert names(tmp_path) == ["checkpoint-10"]


def test_killed_while_it_removes_one_none_is_half_there(tmp_path, monkeypatch):
    folder = make_folders(tmp_path, [5, 10, 15])

    def killed(path, ignore_errors):
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_oldest(folder, 1, folder / "checkpoint-15")
    monkeypatch.undo()
    assert names(folder) == [folders.OUTDATED, "checkpoint-10", "checkpoint-15"]
    remove_oldest(folder, 1, folder / "checkpoint-15")
    assert names(folder) == ["checkpoint-15"]


def test_an_older_damaged_checkpoint_stays(tmp_path):
    make_folders(tmp_path, [5])
    (tmp_path / "damaged-checkpoint-5").mkdir()
    (tmp_path / "damaged-checkpoint-5" / "kept").touch()
    assert folders.last_complete(tmp_path) is None
    assert names(tmp_path) == ["damaged-checkpoint-5", "damaged-checkpoint-5-2"]
    assert names(tmp_path / "damaged-checkpoint-5") == ["kept"]


def test_one_that_another_process_puts_back_meanwhile_is_there(tmp_path, monkeypatch):
    replaced = make_folders(tmp_path / folders.UNFINISHED / "replaced", [5]) / "checkpoint-5"

    def put_back_by_another(path):
        replaced.rename(tmp_path / "checkpoint-5")

    monkeypatch.setattr(folders, "why_corrupt", put_back_by_another)
    folders.put_back_replaced(str(tmp_path))
    assert (tmp_path / "checkpoint-5" / "model.safetensors").exists()
