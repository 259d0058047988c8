from __future__ import annotations

import logging
from dataclasses import replace

import datasets
import numpy as np
import psutil
import pytest
import torch
from encoded_images import cell, encode, noise, pngs
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTImageProcessor

from hf_lpwd.vision.data.augmentation import random_numbers
from hf_lpwd.vision.data.data_args import DataTrainingArguments
from hf_lpwd.vision.data.decoding import Scale, read_image
from hf_lpwd.vision.data.image_files import frames_note, several_frames
from hf_lpwd.vision.data.images import BadImageError, EpochCallback, ImageDataset, collate
from hf_lpwd.vision.data.labelled import load_labelled
from hf_lpwd.vision.data.sample import default_augmentation, look_at_images
from hf_lpwd.vision.data.splits import load_splits
from hf_lpwd.vision.data.transforms import ImageTransform

PROCESSOR = ViTImageProcessor(size={"height": 16, "width": 16})


def dataset_of(contents, labels=None) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))}
    )
    labels = [row % 4 for row in range(len(contents))] if labels is None else labels
    cells = [content if content is None else cell(content) for content in contents]
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)


BAD = {
    "truncated PNG": (pngs(1)[0][:-40], "image file is truncated"),
    "truncated JPEG": (encode(Image.fromarray(noise(40, 40, 3)), "JPEG")[:-60], "image file is truncated"),
    "no bytes": (b"", "there are no bytes"),
    "nothing": (None, "there are no bytes"),
    "text": (b"<html>not found</html>", "not an image in a known format"),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_by_split_and_row(name, in_memory):
    content, reason = BAD[name]
    data = dataset_of([*pngs(2), content, *pngs(1)])
    options = {"source": "train", "rows": [4, 9, 17, 20], "in_memory": in_memory}
    with pytest.raises(BadImageError, match=f"^train row 17: the image cannot be decoded: {reason}"):
        ImageDataset(data, ImageTransform(PROCESSOR), **options).__getitems__([0, 2])


def test_a_bad_image_met_in_a_worker_is_one_line():
    data = ImageDataset(dataset_of([*pngs(2), b"x"]), ImageTransform(PROCESSOR), in_memory=False)
    with pytest.raises(BadImageError) as error:
        list(DataLoader(data, batch_size=3, collate_fn=collate, num_workers=1))
    assert str(error.value) == "train row 2: the image cannot be decoded: not an image in a known format"


@pytest.mark.parametrize("in_memory", [True, False])
def test_bad_images_are_skipped_and_counted(in_memory):
    good = pngs(3)
    contents = [BAD["text"][0], good[0], None, good[1], BAD["truncated PNG"][0], good[2]]
    data = ImageDataset(
        dataset_of(contents, [0, 1, 2, 3, 0, 1]),
        ImageTransform(PROCESSOR),
        skip_bad_images=True,
        in_memory=in_memory,
    )
    assert (len(data), data.num_skipped) == (3, 3)
    assert data.labels.tolist() == [1, 3, 1]
    assert data.__getitems__([2, 0])["labels"].tolist() == [1, 1]
    for index, content in enumerate(good):
        assert (data.images([index])[0].numpy() == read_image(cell(content))).all()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_class_that_skipping_empties_is_named(in_memory, caplog):
    data = dataset_of([*pngs(2), b"x", b"y", *pngs(1)], [0, 1, 2, 3, 0])
    with caplog.at_level(logging.WARNING):
        for role in (None, "validation"):
            ImageDataset(
                data, ImageTransform(PROCESSOR), skip_bad_images=True, in_memory=in_memory, role=role
            )
    lost = "no image of 2 classes can be decoded: c, d"
    assert caplog.messages == [f"train: {lost}", f"validation: {lost}"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_one_bit_depth_for_a_dataset(in_memory):
    """The darkest image is no lighter in a batch of its own, nor in a crop of dark pixels."""
    images = [np.full((16, 16), value, dtype=np.uint16) for value in (40, 200, 3000, 4000)]
    data = dataset_of([encode(Image.fromarray(image)) for image in images])
    for augmentation in ("none", "random_resized_crop"):
        served = ImageDataset(data, ImageTransform(PROCESSOR, augmentation), in_memory=in_memory)
        values = (served.__getitems__(range(4))["pixel_values"][:, 0, 0, 0] * 0.5 + 0.5) * 255
        assert values.round().tolist() == [2, 12, 187, 249]  # 4095 is white
    transform = ImageTransform(PROCESSOR)
    one = ImageDataset(data.select([0]), transform, in_memory=in_memory, scale=Scale(integers=4095))
    assert int(one.images([0])[0].max()) == 2


@pytest.mark.parametrize(
    ("highest", "dtype", "expected"),
    [
        ([200, 255], np.uint16, Scale(integers=255)),
        ([200, 256], np.uint16, Scale(integers=1023)),
        ([1024, 3], np.uint16, Scale(integers=4095)),
        ([4096, 3], np.int32, Scale(integers=65535)),
        ([0.5, 1.0], np.float32, Scale(floats=1)),
        ([0.5, 200.0], np.float32, Scale(floats=255)),
    ],
)
def test_the_bit_depth_is_that_of_the_highest_value(highest, dtype, expected):
    files = [encode(Image.fromarray(np.array([[0, value]], dtype=dtype)), "TIFF") for value in highest]
    data = dataset_of([*pngs(1), b"damaged", *files])
    facts = look_at_images([data], "image")
    assert facts.scale == expected
    assert (facts.smallest, facts.largest) == ((1, 2), (16, 16))
    assert look_at_images([dataset_of(pngs(1))], "image").scale is None


def test_nothing_but_bad_images():
    with pytest.raises(BadImageError, match=r"^test: no image can be decoded$"):
        ImageDataset(dataset_of([b"x", b"y"]), ImageTransform(PROCESSOR), source="test", skip_bad_images=True)


@pytest.mark.parametrize("augmentation", ["crop_flip", "random_resized_crop"])
@pytest.mark.parametrize("sizes", [[(16, 16)] * 6, [(10, 20), (16, 16), (16, 16), (30, 8), (1, 1), (9, 9)]])
def test_in_memory_and_streamed_give_the_same(sizes, augmentation):
    contents = [encode(Image.fromarray(noise(*size, 3, seed=row))) for row, size in enumerate(sizes)]
    memory, streamed = (
        ImageDataset(
            dataset_of(contents), ImageTransform(PROCESSOR, augmentation), seed=1, in_memory=in_memory
        )
        for in_memory in (True, False)
    )
    assert (memory.in_memory, streamed.in_memory) == (True, False)
    for indices in ([0, 1, 2, 3, 4, 5], [5, 2], [1, 2]):
        first, second = memory.__getitems__(indices), streamed.__getitems__(indices)
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])
        for index, image in zip(indices, memory.images(indices), strict=True):
            assert (image.numpy() == read_image(cell(contents[index]))).all()


def test_what_does_not_fit_in_memory_is_streamed(monkeypatch):
    data = dataset_of(pngs(10))

    def available(count):
        memory = psutil.virtual_memory()._replace(available=count)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        return ImageDataset(data, ImageTransform(PROCESSOR)).in_memory

    decoded = 10 * 3 * 16 * 16
    assert available(2 * decoded + 1)
    assert not available(2 * decoded)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert not available(8 * decoded)
    assert available(8 * decoded + 1)


@pytest.mark.parametrize("augmentation", ["crop", "crop_flip", "random_resized_crop"])
def test_an_image_is_the_same_in_every_batch(augmentation):
    data = ImageDataset(dataset_of(pngs(8)), ImageTransform(PROCESSOR, augmentation), seed=5)
    whole = data.__getitems__(range(8))["pixel_values"]
    for indices in ([3], [7, 0, 3], [3, 3]):
        assert torch.equal(data.__getitems__(indices)["pixel_values"], whole[indices])
    assert torch.equal(data[3]["pixel_values"], whole[3])
    data.set_epoch(1)
    assert not torch.equal(data.__getitems__(range(8))["pixel_values"], whole)
    data.set_epoch(0)
    assert torch.equal(data.__getitems__(range(8))["pixel_values"], whole)
    other = ImageDataset(dataset_of(pngs(8)), ImageTransform(PROCESSOR, augmentation), seed=6)
    assert not torch.equal(other.__getitems__(range(8))["pixel_values"], whole)


def test_the_random_numbers_are_those_of_seed_epoch_and_index():
    transform = ImageTransform(PROCESSOR, "crop_flip")
    data = ImageDataset(dataset_of(pngs(5)), transform, seed=5)
    data.set_epoch(2)
    expected = transform(data.images([4, 1]), random_numbers(5, 2, [4, 1], 3))
    assert torch.equal(data.__getitems__([4, 1])["pixel_values"], expected)


@pytest.mark.parametrize("in_memory", [True, False])
def test_workers_that_persist_see_the_epoch(in_memory):
    data = ImageDataset(dataset_of(pngs(8)), ImageTransform(PROCESSOR, "crop_flip"), in_memory=in_memory)
    loader = DataLoader(data, batch_size=3, collate_fn=collate, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 5):
        data.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch["labels"]) for batch in batches] == [3, 3, 2]
        actual = torch.cat([batch["pixel_values"] for batch in batches])
        assert torch.equal(actual, data.__getitems__(range(8))["pixel_values"])


def test_spawned_workers_give_the_same():
    data = ImageDataset(dataset_of(pngs(4)), ImageTransform(PROCESSOR, "crop_flip"))
    loader = DataLoader(
        data, batch_size=4, collate_fn=collate, num_workers=1, multiprocessing_context="spawn"
    )
    assert torch.equal(next(iter(loader))["pixel_values"], data.__getitems__(range(4))["pixel_values"])


def test_collate():
    batch = {"pixel_values": torch.zeros(2, 3, 4, 4), "labels": torch.tensor([1, 2])}
    assert collate(batch) is batch
    samples = [{"pixel_values": torch.full((3, 4, 4), i), "labels": torch.tensor(i)} for i in range(2)]
    stacked = collate(samples)
    assert stacked["pixel_values"].shape == (2, 3, 4, 4)
    assert stacked["labels"].tolist() == [0, 1]
    with pytest.raises(TypeError, match="remove_unused_columns=False"):
        collate(["pixel_values", "labels"])


class Recorder(torch.nn.Module):
    """Keeps a checksum of every batch that it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def forward(self, pixel_values, labels):
        if self.training:
            self.seen.append(pixel_values.double().square().sum().item())
        return {"loss": self.weight**2, "logits": pixel_values.mean(dim=(2, 3))}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(("step", "workers"), [(3, 0), (4, 0), (6, 2)])
def test_a_resumed_run_sees_the_images_of_an_unbroken_one(tmp_path, step, workers):
    """Four batches an epoch: resumed within epoch 0 and 1, and at the start of epoch 1."""
    data = ImageDataset(dataset_of(pngs(8)), ImageTransform(PROCESSOR, "crop_flip"), seed=1)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=2,
        save_steps=step,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )

    def train(callbacks, **options):
        data.set_epoch(0)
        model = Recorder()
        trainer = Trainer(
            model, args, train_dataset=data, data_collator=collate, callbacks=[EpochCallback(), *callbacks]
        )
        trainer.train(**options)
        return model.seen

    whole = train([])
    assert len(set(whole)) == len(whole) == 12
    first = train([StopAt(step)])
    rest = train([], resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert first + rest == whole


def test_the_default_augmentation():
    digits = load_splits(DataTrainingArguments(max_train_samples=20), seed=0)
    assert default_augmentation(digits) == "crop"
    for size, expected in (((64, 64), "crop_flip"), ((64, 65), "random_resized_crop")):
        splits = replace(digits, name="pets", train=dataset_of(pngs(3, *size)))
        assert default_augmentation(splits) == expected


def test_from_split_names_the_row_in_the_source():
    splits = load_splits(DataTrainingArguments(), seed=0)
    data = ImageDataset.from_split(splits, "validation", PROCESSOR, DataTrainingArguments())
    expected = torch.cat(
        [
            PROCESSOR(image.convert("RGB"), return_tensors="pt")["pixel_values"]
            for image in splits.validation["image"]
        ]
    )
    assert torch.equal(data.__getitems__(range(len(data)))["pixel_values"], expected)
    assert data.labels.tolist() == splits.validation["label"][:]
    row = splits.rows["validation"][3]
    broken = splits.validation.cast_column("image", datasets.Image(decode=False)).map(
        lambda example, index: {"image": cell(b"x")} if index == 3 else example, with_indices=True
    )
    with pytest.raises(BadImageError, match=f"^train row {row}: the image cannot be decoded: not an image"):
        ImageDataset.from_split(
            replace(splits, validation=broken), "validation", PROCESSOR, DataTrainingArguments()
        )


def test_training_images_alone_are_augmented():
    args = DataTrainingArguments(
        max_train_samples=20, auto_augment="ra", ra_magnitude=5, random_erase=0.25, augmentation="crop_flip"
    )
    splits = load_splits(args, seed=0)
    transforms = {
        role: ImageDataset.from_split(splits, role, PROCESSOR, args).transform for role in splits.sources
    }
    settings = {
        role: (each.augmentation, each.rand_augment, each.random_erase, each.num_random)
        for role, each in transforms.items()
    }
    assert settings == {
        "train": ("crop_flip", 5, 0.25, 6),
        "validation": ("none", None, 0.0, 0),
        "test": ("none", None, 0.0, 0),
    }
    off = ImageDataset.from_split(splits, "train", PROCESSOR, DataTrainingArguments()).transform
    assert (off.augmentation, off.rand_augment, off.num_random) == ("crop", None, 2)


@pytest.mark.parametrize("sizes", [[(16, 16)] * 6, [(10, 20), (16, 16), (16, 16), (30, 8), (1, 1), (9, 9)]])
@pytest.mark.parametrize("workers", [0, 2])
def test_unfinished_batches_hold_uint8_images_and_are_finished_later(sizes, workers):
    contents = [encode(Image.fromarray(noise(*size, 3, seed=row))) for row, size in enumerate(sizes)]
    transform = ImageTransform(PROCESSOR, "crop_flip", random_erase=0.5)
    finished, unfinished = (
        ImageDataset(dataset_of(contents), transform, seed=1, unfinished=later) for later in (False, True)
    )
    loader = DataLoader(unfinished, batch_size=4, collate_fn=collate, num_workers=workers)
    for indices, batch in zip(([0, 1, 2, 3], [4, 5]), loader, strict=True):
        one_size = len(set(sizes)) == 1
        assert {name: values.dtype for name, values in batch.items()} == {
            "pixel_values": torch.uint8,
            "labels": torch.int64,
            "erase": torch.int64,
            **({"offsets": torch.int64} if one_size else {}),
        }
        expected = finished.__getitems__(indices)
        actual = transform.finish(batch)
        assert actual.keys() == expected.keys() == {"pixel_values", "labels"}
        for name in expected:
            assert torch.equal(actual[name], expected[name])
    streamed = ImageDataset(
        dataset_of(contents), transform, seed=1, unfinished=True, in_memory=False
    ).__getitems__([2, 1])
    assert streamed.keys() == {"pixel_values", "labels", "erase"}
    assert streamed["pixel_values"].dtype == torch.uint8
    assert torch.equal(
        transform.finish(streamed)["pixel_values"], finished.__getitems__([2, 1])["pixel_values"]
    )
    sample = transform.finish(collate([unfinished[3]]))
    assert torch.equal(sample["pixel_values"][0], finished[3]["pixel_values"])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_share_the_pixels(method):
    """Of 96 MB of pixels, hardly anything is a worker's own, though each reads all of them."""

    def private(count):
        contents = [encode(Image.new("RGB", (1024, 512), (row, 0, 0))) for row in range(count)]
        data = ImageDataset(dataset_of(contents), ImageTransform(PROCESSOR), in_memory=True, unfinished=True)
        assert data._pixels.nbytes == count * 3 * 512 * 1024
        sampler = [row % count for row in range(150)]
        loader = DataLoader(
            data, 1, sampler=sampler, collate_fn=collate, num_workers=2, multiprocessing_context=method
        )
        batches = iter(loader)
        for index in sampler[:-4]:
            assert next(batches)["pixel_values"][0, 0, 0, 0] == index
        workers = [psutil.Process(worker.pid) for worker in batches._workers]
        return [worker.memory_full_info().uss for worker in workers]

    few, many = private(2), private(64)
    assert sum(many) - sum(few) < 2 * 24e6, (few, many)


def frames(file_format: str, count: int, green: int = 0) -> bytes:
    """Returns a file of `count` images, each darker than the one before."""
    first, *others = [Image.new("RGB", (16, 16), (200 - 50 * index, green, 0)) for index in range(count)]
    more = {"save_all": True, "append_images": others} if others else {}
    return encode(first, file_format, **more)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_images_with_several_frames_are_counted(tmp_path, file_format):
    contents = [frames(file_format, count) for count in (1, 3, 2, 1)]
    data = dataset_of([*contents, frames("JPEG", 1), frames("MPO", 2), b"II*\0damaged", b"", None])
    said = "2 of 9 images looked at have several frames, of which the first is used"
    assert several_frames([data], "image") == said
    assert several_frames([data.select([0, 3, 4, 5])], "image") is None
    (tmp_path / "misnamed.jpg").write_bytes(contents[1])
    cells = [
        {"bytes": None, "path": path} for path in (str(tmp_path / "misnamed.jpg"), "http://x.invalid/a.gif")
    ]
    assert frames_note(cells) == "1 of 2 images looked at has several frames, of which the first is used"


def test_of_many_images_a_part_is_looked_at_for_frames(monkeypatch):
    monkeypatch.setattr("hf_lpwd.vision.data.image_files._MOST_HEADERS", 4)
    data = dataset_of([frames("GIF", 2), *pngs(6)])
    said = "2 of 4 images looked at have several frames, of which the first is used"
    assert several_frames([data, data], "image") == said


def test_the_paragraph_says_how_many_images_have_several_frames(tmp_path, caplog):
    for row, count in enumerate((1, 2, 3, 1, 1, 1)):
        path = tmp_path / ("train" if row < 4 else "val") / "ab"[row % 2] / f"{row}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(frames("GIF", count, green=row))
    splits = load_splits(DataTrainingArguments(dataset_name=str(tmp_path)), seed=0)
    said = "2 of 6 images looked at have several frames, of which the first is used"
    assert splits.facts.notes == [said]
    assert f" {said}." in splits.facts.describe()
    assert said in caplog.messages
    labelled = load_labelled(DataTrainingArguments(dataset_name=str(tmp_path)), ["a", "b"], "train")
    assert labelled.facts.notes == [said.replace("6", "4")]
