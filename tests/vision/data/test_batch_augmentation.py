"""MixUp, CutMix, RandAugment and erasing: loss, training, resuming, and what is left to the device."""

import json
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
from encoded_images import encode, noise
from killed_runs import Runs
from mixed_run import fixed_mix, make_image_trainer
from PIL import Image
from processes import in_two_processes
from raw_loop import DROPOUT, raw_loop
from safetensors.torch import load_file
from small_runs import TINY_VIT, train
from small_trainers import assert_same, trained
from torch.nn.functional import cross_entropy, log_softmax, one_hot
from torchvision.transforms import v2
from transformers.modeling_outputs import ImageClassifierOutput

from hf_lpwd.checkpoints.run_record import differences
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.data.augmentation import make_mixer, mixed_loss, training_loss
from hf_lpwd.vision.image_trainer import ImageTrainer
from hf_lpwd.vision.run_settings import run_settings

ALL = [
    *("--mixup_alpha", "0.2", "--cutmix_alpha", "1.0", "--auto_augment", "ra", "--ra_magnitude", "7"),
    *("--random_erase", "0.3", "--augmentation", "crop_flip"),
]


def some_batch(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 4


@pytest.mark.parametrize(
    ("alphas", "kinds"),
    [((0.2, 0.0), [v2.MixUp]), ((0.0, 1.0), [v2.CutMix]), ((0.2, 1.0), [v2.MixUp, v2.CutMix])],
)
def test_the_mixers_are_torchvisions(alphas, kinds):
    mix = make_mixer(4, *alphas)
    assert [type(one) for one in mix.transforms] == kinds
    assert [one.alpha for one in mix.transforms] == [alpha for alpha in alphas if alpha]
    pixel_values, labels = some_batch()
    torch.manual_seed(1)
    mixed, probabilities = mix(pixel_values, labels)
    torch.manual_seed(1)
    expected = v2.RandomChoice(
        [k(alpha=a, num_classes=4) for k, a in zip(kinds, filter(None, alphas), strict=True)]
    )
    for ours, theirs in zip((mixed, probabilities), expected(pixel_values, labels), strict=True):
        assert torch.equal(ours, theirs)
    assert probabilities.shape == (6, 4)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(6))
    assert not torch.equal(mixed, pixel_values)
    assert make_mixer(4) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_hand_mixed_labels(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(6) % 4
    mixed = 0.7 * one_hot(labels, 4).double() + 0.3 * one_hot(labels.roll(1), 4).double()
    by_hand = -((1 - smoothing) * mixed + smoothing / 4).mul(log_softmax(logits, dim=1)).sum(dim=1)
    outputs = {"logits": logits}
    for targets, expected in (
        (mixed, by_hand.sum()),
        (labels, cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")),
    ):
        each = mixed_loss(outputs, targets, label_smoothing=smoothing)
        torch.testing.assert_close(each.double(), expected / 6, rtol=1e-6, atol=0)
        assert torch.equal(each, mixed_loss((logits,), targets, label_smoothing=smoothing))
        for count in (20, torch.tensor(20), torch.tensor([[10], [10]])):
            of_many = mixed_loss(outputs, targets, count, label_smoothing=smoothing)
            torch.testing.assert_close(of_many.double(), expected / 20, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        cross_entropy(logits, mixed, label_smoothing=smoothing), by_hand.mean(), rtol=1e-12, atol=0
    )


def test_the_loss_of_a_loop():
    pixel_values, labels = some_batch()

    def model(pixel_values, labels=None):
        logits = pixel_values.mean(dim=(2, 3)) @ torch.tensor([[1.0, 2, 3, 4], [5, 2, 1, 0], [0, 3, 0, 1]])
        loss = None if labels is None else cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    batch = {"pixel_values": pixel_values, "labels": labels}
    assert torch.equal(training_loss(model, batch, None), model(**batch).loss)
    mixed, probabilities = fixed_mix(pixel_values, labels % 3)
    probabilities = torch.nn.functional.pad(probabilities, (0, 1))
    loss = training_loss(model, batch, lambda *_: (mixed, probabilities))
    torch.testing.assert_close(loss, cross_entropy(model(mixed).logits, probabilities))


class Seen(ImageTrainer):
    """Keeps what `_prepare_inputs` gets and gives."""

    made: ClassVar[list] = []

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []
        self.made.append(self)

    def _prepare_inputs(self, inputs):
        prepared = super()._prepare_inputs(inputs)
        self.seen.append((self.model.training, dict(inputs), prepared))
        return prepared

    def try_batch(self, most=16):
        found = super().try_batch(most)
        self.seen.clear()  # before the training
        return found


def furthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_accumulating_two_batches_is_one_double_batch(tmp_path):
    """22 images an epoch: steps of 8, 8 and 6, in batches of 4 the last one of 4 and 2."""
    double = trained(make_image_trainer(tmp_path, per_device_train_batch_size=8))
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = make_image_trainer(tmp_path, **changes)
    assert furthest(double, trained(trainer)) < 1e-6
    assert trainer.state.global_step == 6
    unmixed = trained(make_image_trainer(tmp_path, mix=None, **changes))
    assert furthest(double, unmixed) > 1e-3


def test_the_trainers_loss_is_that_of_hand_mixed_labels(tmp_path):
    trainer = make_image_trainer(tmp_path)
    batch = {
        name: torch.stack([trainer.train_dataset[i][name] for i in range(5)])
        for name in ("pixel_values", "labels")
    }
    pixel_values, mixed = fixed_mix(**batch)
    trainer.model.train()
    logits = trainer.model(pixel_values=pixel_values).logits
    prepared = trainer._prepare_inputs(batch)
    loss = trainer.compute_loss(trainer.model, prepared, num_items_in_batch=torch.tensor(5))
    torch.testing.assert_close(loss, cross_entropy(logits, mixed, label_smoothing=0.2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_evaluation_is_not_mixed(tmp_path, smoothing):
    changes = {"label_smoothing_factor": smoothing}
    mixing, plain = (make_image_trainer(tmp_path, mix=mix, **changes) for mix in (fixed_mix, None))
    losses = [trainer.evaluate()["eval_loss"] for trainer in (mixing, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    predictions = [trainer.predict(trainer.eval_dataset).predictions for trainer in (mixing, plain)]
    assert np.array_equal(*predictions)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    in_two_processes("mixed_run.py", tmp_path)
    one = trained(make_image_trainer(tmp_path / "one", size=24, per_device_train_batch_size=8))
    assert furthest(one, torch.load(tmp_path / "weights.pt", weights_only=True)) < 1e-6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    server = Runs(tmp_path_factory.mktemp("runs"))
    yield server
    server.close()


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_killed_within_an_epoch_and_resumed_it_is_as_if_never_killed(runs, workers):
    """13 steps an epoch, the third checkpoint after the sixth. The run that is left alone has no workers."""
    flags = [*ALL, "--label_smoothing_factor", "0.1", "--dataloader_num_workers"]
    if not (runs.folder / "whole").exists():
        code, _, log, _ = runs("whole", *flags, "0")
        assert code == 0, log
    code, unfinished, _, _ = runs(workers, *flags, workers, end=signal.SIGKILL, finishing=3)
    assert (code, unfinished) == (-signal.SIGKILL, True)
    code, _, log, _ = runs.resume(workers, *flags, workers)
    assert code == 0, log
    runs.assert_same(workers, "whole")


@pytest.fixture
def leave_to_device(monkeypatch):
    """Makes runs leave the images to the device, as they do by themselves where that is no CPU."""

    def switch():
        monkeypatch.setattr("hf_lpwd.vision.prepare.finishes_later", lambda device: True)

    monkeypatch.setattr("hf_lpwd.vision.finetune.ImageTrainer", Seen)
    monkeypatch.setattr(Seen, "made", [])
    return switch


@pytest.fixture(scope="module")
def several_sizes(tmp_path_factory):
    """A folder of 2 x 24 images of several sizes."""
    root = tmp_path_factory.mktemp("images")
    for index in range(48):
        path = root / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(Image.fromarray(noise(12 + index % 5, 14, 3, seed=index))))
    return root


@pytest.mark.parametrize(
    ("flags", "of_one_size"),
    [(["--augmentation", "crop"], True), (ALL, True), (ALL, False)],
    ids=["crop", "all", "several sizes"],
)
def test_left_to_the_device_a_run_is_the_same(tmp_path, several_sizes, leave_to_device, flags, of_one_size):
    erased = "--random_erase" in flags
    if not of_one_size:
        flags = [*flags, *TINY_VIT, "--dataset_name", str(several_sizes)]
    flags = [*flags, "--dataloader_num_workers", "1"]
    assert train(tmp_path / "cpu", *flags) == 0
    leave_to_device()
    assert train(tmp_path / "device", *flags) == 0
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("cpu", "device")]
    assert weights[0] == weights[1]
    for split in ("eval", "test") if of_one_size else ("eval",):
        results = [
            json.loads((tmp_path / run / f"{split}_results.json").read_text()) for run in ("cpu", "device")
        ]
        for name in ("loss", "accuracy", "f1_macro"):
            assert results[0][f"{split}_{name}"] == results[1][f"{split}_{name}"]
    on_cpu, on_device = (trainer.seen for trainer in Seen.made)
    assert len(on_cpu) == len(on_device) >= 6
    assert {training for training, _, _ in on_device} == {True, False}
    for (training, sent, given), (_, finished, expected) in zip(on_device, on_cpu, strict=True):
        drawn = ({"offsets"} if of_one_size else set()) | ({"erase"} if training and erased else set())
        assert sent.keys() == {"pixel_values", "labels", *drawn}
        assert sent["pixel_values"].dtype == torch.uint8
        assert {sent[name].dtype for name in sent.keys() - {"pixel_values"}} == {torch.int64}
        assert finished["pixel_values"].dtype == torch.float32
        for name in expected:
            assert torch.equal(given[name], expected[name])


def test_the_loop_resumes_exactly_and_leaves_images_to_the_device(tmp_path, monkeypatch):
    """Step 3 is in the first of two epochs of four steps each."""
    mixing = {name.removeprefix("--"): value for name, value in zip(ALL[::2], ALL[1::2], strict=True)}
    settings = {**mixing, **DROPOUT, "gradient_accumulation_steps": 3, "checkpointing_steps": 3}
    with raw_loop() as (run, module):
        through = run(tmp_path / "through", **settings)
        seen = set()
        original = module.training_loss

        def training_loss(model, batch, mix):
            seen.add(tuple(sorted(batch)))
            return original(model, batch, mix)

        monkeypatch.setattr(module, "training_loss", training_loss)
        monkeypatch.setattr(module, "finishes_later", lambda device: True)
        checkpoint = through / "checkpoint-3"
        resumed = run(tmp_path / "resumed", resume_from_checkpoint=checkpoint, **settings)
        assert_same(*(load_file(folder / "model.safetensors") for folder in (through, resumed)))
        assert seen == {("labels", "pixel_values")}
        with pytest.raises(ValueError, match=r"its cutmix_alpha is 1\.0, now 0\.5"):
            run(tmp_path / "other", resume_from_checkpoint=checkpoint, **{**settings, "cutmix_alpha": 0.5})


def test_the_flags_are_part_of_the_run():
    settings = run_settings(*parse_args(ALL))
    names = ("mixup_alpha", "cutmix_alpha", "auto_augment", "ra_magnitude", "random_erase")
    assert [settings[name] for name in names] == [0.2, 1.0, "ra", 7, 0.3]
    other = run_settings(*parse_args([*ALL, "--mixup_alpha", "0.4"]))
    assert differences(settings, other) == {"mixup_alpha": (0.2, 0.4)}
