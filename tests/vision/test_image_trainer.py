"""Which images an evaluation reads: those of its own split, all of them, each once."""

import copy
import json

import pytest
import torch
from small_runs import train
from small_trainers import COMMON, make_model
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_lpwd.training_args import LPWDTrainingArguments
from hf_lpwd.vision.data.images import collate
from hf_lpwd.vision.data.transforms import ImageTransform
from hf_lpwd.vision.image_trainer import ImageTrainer


class Rows(Dataset):
    """Images whose label is their row."""

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"pixel_values": torch.zeros(3, 16, 16), "labels": torch.tensor(self.rows[index])}


def rows_read(trainer, dataset=None):
    return [int(row) for batch in trainer.get_eval_dataloader(dataset) for row in batch["labels"]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"dataloader_drop_last": True},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_drop_last": True},
    ],
)
def test_each_split_is_read_whole_whatever_was_read_before(tmp_path, changes):
    validation, test = Rows(*range(10)), Rows(*range(20, 27))
    args = LPWDTrainingArguments(
        output_dir=str(tmp_path),
        remove_unused_columns=False,
        per_device_eval_batch_size=4,
        **COMMON | changes,
    )
    transform = ImageTransform(ViTImageProcessor(size={"height": 16, "width": 16}))
    trainer = ImageTrainer(
        model=make_model(),
        args=args,
        transform=transform,
        train_dataset=Rows(*range(40, 49)),
        eval_dataset=validation,
        data_collator=collate,
    )
    assert rows_read(trainer) == list(range(10))
    assert rows_read(trainer, test) == list(range(20, 27))
    assert rows_read(trainer, validation) == list(range(10))
    assert rows_read(trainer, Rows(3, 5)) == [3, 5]
    # Training may drop the rest: that is what the flag is for.
    whole = not changes.get("dataloader_drop_last", False)
    assert sum(len(batch["labels"]) for batch in trainer.get_train_dataloader()) == (9 if whole else 8)


def test_the_loaders_of_a_run_change_none_of_its_figures(tmp_path):
    flags = ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "True"]
    figures = []
    for name, more in (("a", []), ("b", flags)):
        assert train(tmp_path / name, *more) == 0
        read = json.loads((tmp_path / name / "all_results.json").read_text())
        figures.append({key: read[key] for key in read if "accuracy" in key or "loss" in key})
    assert figures[0]["eval_loss"] != figures[0]["test_loss"]
    assert figures[0] == figures[1]


class Images(Rows):
    def __getitems__(self, indices):
        return [{**self[index], "labels": torch.tensor(index % 2)} for index in indices]


@pytest.mark.parametrize("unused", [[], ["extra"]])
def test_a_batch_is_tried_without_effect(tmp_path, unused):
    """Statistics of BatchNorm, random numbers, gradients and mode are as before; what is unused is named."""
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2, num_channels=3
    )
    model = ResNetForImageClassification(config).train()
    for name in unused:
        model.register_parameter(name, torch.nn.Parameter(torch.ones(2)))
    args = LPWDTrainingArguments(output_dir=str(tmp_path), remove_unused_columns=False, **COMMON)
    transform = ImageTransform(ViTImageProcessor(size={"height": 16, "width": 16}))
    trainer = ImageTrainer(
        model=model, args=args, transform=transform, train_dataset=Images(*range(9)), data_collator=collate
    )
    state, random_numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    load, compute, found = trainer.try_batch()
    assert found == unused
    assert 0 < load < compute < 10
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
