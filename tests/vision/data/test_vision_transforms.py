from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tvf
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_lpwd.messages import BadInputError
from hf_lpwd.vision.data.augmentation import (
    crop_boxes,
    crop_offsets,
    erase,
    erase_boxes,
    horizontal_flip,
    rand_augment,
    random_numbers,
    resize_each,
    shift_crop,
)
from hf_lpwd.vision.data.data_args import AUGMENTATIONS
from hf_lpwd.vision.data.transforms import ImageTransform

PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size={"height": 48, "width": 48}),
    "vit without resize": lambda: ViTImageProcessor(do_resize=False),
    "vit with other constants": lambda: ViTImageProcessor(
        size={"height": 24, "width": 24}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=3
    ),
    "vit on PIL": lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}),
    "convnext with crop_pct": lambda: ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.8),
    "bit": lambda: BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}),
    "deit": lambda: DeiTImageProcessor(
        size={"height": 56, "width": 56}, crop_size={"height": 48, "width": 48}
    ),
    "mobilevit, BGR": lambda: MobileViTImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}
    ),
    "efficientnet, nearest": lambda: EfficientNetImageProcessor(size={"height": 48, "width": 48}),
    "timm": lambda: timm_processor(48, 0.9),
    "timm at its own size": lambda: timm_processor(32, 1.0),
}


def timm_processor(side, crop_pct):
    config = {
        "input_size": (3, side, side),
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    return TimmWrapperImageProcessor(pretrained_cfg=config)


def arrays_of(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def tensors(arrays):
    return [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("sizes", [[(32, 32)] * 3, [(48, 48)] * 2, [(60, 40), (40, 64), (90, 100)]])
def test_without_augmentation_the_result_is_the_processors_for_a_pil_image(name, sizes):
    if name == "vit without resize" and len(set(sizes)) > 1:
        sizes = [(60, 40)] * 2
    processor = PROCESSORS[name]()
    arrays = arrays_of(*sizes)
    expected = torch.cat(
        [
            torch.as_tensor(processor(Image.fromarray(array), return_tensors="pt")["pixel_values"])
            for array in arrays
        ]
    )
    batch = tensors(arrays)
    actual = ImageTransform(processor)(torch.stack(batch) if len(set(sizes)) == 1 else batch)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", [name for name in PROCESSORS if name != "vit without resize"])
def test_random_resized_crop_replaces_the_processors_resizing_alone(name):
    processor = PROCESSORS[name]()
    transform = ImageTransform(processor, "random_resized_crop")
    arrays = arrays_of((60, 40), (40, 64), (90, 100), (64, 64))
    numbers = np.random.default_rng(1).random((4, transform.num_random))
    actual = transform(tensors(arrays), numbers)
    expected_size = ImageTransform(processor)(tensors(arrays[:1])).shape[-2:]
    assert transform.size == tuple(expected_size)
    crops = resize_each(transform.cut(tensors(arrays), numbers), transform.size, numbers[:, -1] < 0.5)
    if isinstance(processor, TimmWrapperImageProcessor):
        mean, std = torch.tensor((0.5, 0.4, 0.3)), torch.tensor((0.2, 0.3, 0.4))
        expected = (crops / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    else:
        expected = torch.cat(
            [
                processor(tvf.to_pil_image(crop), do_resize=False, return_tensors="pt")["pixel_values"]
                for crop in crops
            ]
        )
    assert torch.allclose(actual, expected, rtol=0, atol=1e-6)


def test_random_resized_crop_needs_a_fixed_size():
    with pytest.raises(BadInputError, match=r"needs an image processor that resizes to a fixed size$"):
        ImageTransform(ViTImageProcessor(do_resize=False), "random_resized_crop")


def test_an_unknown_augmentation():
    with pytest.raises(BadInputError, match=r"^augmentation must be one of .*, not 'mixup'$"):
        ImageTransform(ViTImageProcessor(), "mixup")


def test_random_resized_crop_equals_torchvisions_for_the_same_box():
    images = tensors(arrays_of((60, 40), (200, 300), (90, 90)))
    transform = ImageTransform(ViTImageProcessor(size={"height": 32, "width": 48}), "random_resized_crop")
    numbers = np.random.default_rng(2).random((3, transform.num_random))
    numbers[:, -1] = [0.2, 0.5, 0.8]
    boxes = crop_boxes(np.array([60, 200, 90]), np.array([40, 300, 90]), numbers)
    parts = transform.cut(images, numbers)
    crops = resize_each(parts, transform.size, numbers[:, -1] < 0.5)
    for image, box, part, crop, flipped, row in zip(
        images, boxes.tolist(), parts, crops, (True, False, False), numbers, strict=True
    ):
        assert transform.box(row, *image.shape[-2:]) == box
        assert torch.equal(part, tvf.crop(image, *box))
        expected = tvf.resized_crop(image, *box, [32, 48], antialias=True)
        assert torch.equal(crop, expected.flip(-1) if flipped else expected)


def test_shift_crop_is_a_crop_of_the_zero_padded_image():
    images = torch.stack(tensors(arrays_of((16, 24), (16, 24), (16, 24), seed=3)))
    numbers = np.array([[0.0, 0.0], [0.999, 0.5], [0.41, 0.999]])
    # Up to 2 of 16 rows and 3 of 24 columns each way: 5 and 7 offsets.
    drawn = crop_offsets([16, 24], numbers)
    assert drawn.dtype == torch.int64
    offsets = [(0, 0), (4, 3), (2, 6)]
    assert drawn.tolist() == [list(place) for place in offsets]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (3, 3)))
    actual = shift_crop(images, drawn)
    for index, (top, left) in enumerate(offsets):
        assert (actual[index].numpy() == padded[index, :, top : top + 16, left : left + 24]).all()


def test_all_shifts_are_equally_likely():
    # A one-pixel image's place in its frame tells the shift; 8 pixels a side: -1, 0 or 1 each way.
    images = torch.zeros(9000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4, 4] = 1
    shifted = shift_crop(images, crop_offsets([8, 8], random_numbers(0, 0, range(9000), 2)))
    counts = shifted.sum(dim=(0, 1)).numpy()[3:6, 3:6]
    assert counts.sum() == 9000
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_half_of_the_images_are_flipped():
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(10000, 1, 2, 4)
    offsets = crop_offsets([2, 4], random_numbers(0, 0, range(10000), 3))
    flipped = horizontal_flip(images, offsets[:, 2])
    first = flipped[:, 0, 0, 0]
    assert set(first.tolist()) == {0, 3}
    assert abs((first == 3).sum().item() - 5000) < 5 * 50
    assert torch.equal(flipped[first == 3], images[first == 3].flip(-1))


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 240)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width):
    count = 4000
    numbers = np.random.default_rng(0).random((count, 23))
    ours = crop_boxes(np.full(count, height), np.full(count, width), numbers).astype(float)
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=float
    )
    for measure in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 3] / boxes[:, 2],
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, 1],
    ):
        assert kstest(measure(ours), measure(theirs)).pvalue > 1e-3
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_an_image_that_no_try_fits_is_cropped_in_its_middle():
    sizes = np.array([[10, 1000], [1000, 10], [100, 100]])
    numbers = np.full((3, 23), 0.999)
    boxes = crop_boxes(sizes[:, 0], sizes[:, 1], numbers)
    # 13 = round(10 * 4/3) wide, and as high where it is the height that is too large.
    assert boxes.tolist() == [[0, 493, 10, 13], [493, 0, 13, 10], [0, 0, 100, 100]]


def test_random_numbers_depend_on_seed_epoch_and_index_alone():
    whole = random_numbers(7, 3, range(50), 5)
    assert whole.shape == (50, 5)
    assert (random_numbers(7, 3, [41, 2, 41], 5) == whole[[41, 2, 41]]).all()
    assert (random_numbers(7, 3, range(50), 2) == whole[:, :2]).all()
    for other in (
        random_numbers(8, 3, range(50), 5),
        random_numbers(7, 4, range(50), 5),
        random_numbers(3, 7, range(50), 5),
    ):
        assert not np.isin(other, whole).any()
    assert len(np.unique(whole)) == whole.size
    assert kstest(random_numbers(0, 0, range(2000), 3).ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "numbers", "offsets"),
    [
        ([16, 24], [0.999, 0.999, 0.4], [4, 6, 1]),
        ([3, 40], [0.999, 0.999, 0.6], [2, 10, 0]),
        ([100, 8], [0.5, 0.0, 0.5], [12, 0, 0]),
        ([16, 16], [], []),
    ],
)
def test_offsets_are_up_to_an_eighth_and_at_least_a_pixel_each_way(size, numbers, offsets):
    assert crop_offsets(size, np.array([numbers])).tolist() == [offsets]


SEVERAL_SIZES = [(60, 40), (40, 64), (90, 100), (60, 40), (64, 64), (48, 48)]
EXTRAS = {
    "plain": {},
    "RandAugment": {"rand_augment": 9},
    "erasing": {"random_erase": 0.5},
    "both": {"rand_augment": 20, "random_erase": 0.5},
}


def by_hand(processor, augmentation, images, numbers, extras):
    """Each image by itself: augmented with torchvision's functions, then the processor's turn."""
    results = []
    fixed = ImageTransform(processor, "random_resized_crop").size
    for image, row in zip(images, numbers, strict=True):
        count = {"none": 0, "crop": 2, "crop_flip": 3, "random_resized_crop": 23}[augmentation]
        own, rest = row[None, :count], row[count:]
        options = {}
        if augmentation == "random_resized_crop":
            box = crop_boxes(*np.array(image.shape[-2:])[:, None], own)[0].tolist()
            image = tvf.resized_crop(image, *box, list(fixed))
            image = tvf.horizontal_flip(image) if own[0, -1] < 0.5 else image
            options = {"do_resize": False}
        elif augmentation != "none":
            top, left, *flip = crop_offsets(image.shape[-2:], own)[0].tolist()
            pad_y, pad_x = (max(1, round(side / 8)) for side in image.shape[-2:])
            image = tvf.crop(tvf.pad(image, [pad_x, pad_y]), top, left, *image.shape[-2:])
            image = tvf.horizontal_flip(image) if flip == [1] else image
        if "rand_augment" in extras:
            torch.manual_seed(int(rest[0] * 2**53))
            image = v2.RandAugment(
                magnitude=extras["rand_augment"], interpolation=InterpolationMode.BILINEAR
            )(image)
        if isinstance(processor, TimmWrapperImageProcessor) and options:
            mean, std = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
            values = tvf.normalize(image.float() / 255, mean, std)[None]
        else:
            pil = tvf.to_pil_image(image)
            values = torch.as_tensor(processor(pil, return_tensors="pt", **options)["pixel_values"])
        if extras.get("random_erase", 0) > 0 and rest[-2] < extras["random_erase"]:
            torch.manual_seed(int(rest[-1] * 2**53))
            erasing = v2.RandomErasing()
            values = erasing.transform(values, erasing.make_params([values]))
        results.append(values)
    return torch.cat(results)


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("sizes", [[(32, 32)] * 6, SEVERAL_SIZES], ids=["one size", "several"])
@pytest.mark.parametrize("name", ["vit", "convnext", "deit", "mobilevit, BGR", "timm"])
def test_started_and_finished_it_is_what_each_image_gets_by_itself(name, sizes, augmentation, extras):
    """Bit for bit; what travels between the parts is uint8 where the processor's steps are torchvision's."""
    make = {**PROCESSORS, "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 48})}[name]
    processor = make()
    transform = ImageTransform(processor, augmentation, **EXTRAS[extras])
    images = tensors(arrays_of(*sizes))
    images = torch.stack(images) if len(set(sizes)) == 1 else images
    numbers = np.random.default_rng(3).random((6, transform.num_random))
    state = torch.get_rng_state()
    sent = transform.start(transform.cut(images, numbers), numbers)
    assert torch.equal(torch.get_rng_state(), state)
    finished = transform.finish({**sent, "labels": torch.arange(6)})
    assert finished.keys() == {"pixel_values", "labels"}
    assert finished["labels"].tolist() == list(range(6))
    assert torch.equal(transform(images, numbers), finished["pixel_values"])
    assert torch.equal(transform.finish(finished)["pixel_values"], finished["pixel_values"])

    by_steps = name in ("vit", "convnext", "deit") or (
        augmentation == "random_resized_crop" and name == "timm"
    )
    assert sent["pixel_values"].dtype == (torch.uint8 if by_steps else torch.float32)
    as_they_are = by_steps and len(set(sizes)) == 1 and augmentation != "random_resized_crop"
    expected = {"pixel_values"} | ({"offsets"} if as_they_are else set())
    assert sent.keys() == expected | ({"erase"} if "random_erase" in EXTRAS[extras] else set())
    if as_they_are:
        assert sent["pixel_values"].shape == (6, 3, 32, 32)
        drawn = {"none": 0, "crop": 2, "crop_flip": 3}[augmentation]
        assert sent["offsets"].shape == (6, 0 if "rand_augment" in EXTRAS[extras] else drawn)
    assert torch.equal(
        finished["pixel_values"], by_hand(processor, augmentation, list(images), numbers, EXTRAS[extras])
    )


def test_a_filter_that_only_the_cpu_has_is_applied_there():
    processor = ViTImageProcessor(size={"height": 48, "width": 48}, resample=1)
    images = torch.stack(tensors(arrays_of(*[(32, 32)] * 3)))
    transform = ImageTransform(processor, "crop_flip")
    numbers = np.random.default_rng(0).random((3, 3))
    sent = transform.start(images, numbers)
    assert (sent.keys(), sent["pixel_values"].shape) == ({"pixel_values"}, (3, 3, 48, 48))
    assert sent["pixel_values"].dtype == torch.uint8
    assert torch.equal(
        transform.finish(sent)["pixel_values"], by_hand(processor, "crop_flip", images, numbers, {})
    )


@pytest.mark.parametrize("augmentation", ["crop_flip", "random_resized_crop", "none"])
def test_finishing_needs_nothing_of_the_cpu(augmentation):
    """On a device without memory, every look at a value and every tensor of another device is an error."""
    processor = ViTImageProcessor(size={"height": 48, "width": 48})
    transform = ImageTransform(processor, augmentation, random_erase=0.5)
    images = torch.stack(tensors(arrays_of(*[(32, 32)] * 3)))
    sent = transform.start(images, np.random.default_rng(0).random((3, transform.num_random)))
    finished = transform.finish({name: values.to("meta") for name, values in sent.items()})
    values = finished["pixel_values"]
    assert (values.device.type, values.dtype, values.shape) == ("meta", torch.float32, (3, 3, 48, 48))


def test_rand_augment_is_drawn_for_each_image():
    image = tensors(arrays_of((24, 24)))[0]
    numbers = random_numbers(0, 0, range(60), 1)[:, 0]
    whole = rand_augment(image.expand(60, 3, 24, 24), numbers, 9)
    assert len({tuple(one.flatten().tolist()) for one in whole}) > 45
    for indices in ([7], [59, 7, 0]):
        assert torch.equal(rand_augment([image] * len(indices), numbers[indices], 9)[0], whole[indices[0]])
    assert not torch.equal(
        rand_augment([image], numbers[:1], 30)[0], rand_augment([image], numbers[:1], 3)[0]
    )


def test_erased_boxes_are_distributed_as_torchvisions():
    count = 3000
    numbers = random_numbers(1, 0, range(count), 2)
    boxes = erase_boxes(numbers, 0.25, (40, 60))
    erased = boxes[:, 2] > 0
    assert (erased.numpy() == (numbers[:, 0] < 0.25)).all()
    assert (boxes[~erased] == 0).all()
    torch.manual_seed(0)
    theirs = [v2.RandomErasing().make_params([torch.empty(3, 40, 60)]) for _ in range(1000)]
    theirs = np.array([[box[side] for side in "ijhw"] for box in theirs])
    for side in range(4):
        assert kstest(boxes[erased][:, side].numpy(), theirs[:, side]).pvalue > 1e-3
    # Nothing fits into one pixel.
    assert (erase_boxes(numbers[:50], 1.0, (1, 1))[:, 2:] == 0).all()


def test_erasing_sets_the_box_to_the_mean():
    images = torch.stack(tensors(arrays_of((9, 12), (9, 12), (9, 12)))).float()
    boxes = torch.tensor([[2, 3, 4, 5], [0, 0, 0, 0], [8, 11, 1, 1]])
    for image, box, erased in zip(images, boxes.tolist(), erase(images, boxes), strict=True):
        assert torch.equal(erased, tvf.erase(image, *box, v=torch.zeros(3, 1, 1)))
