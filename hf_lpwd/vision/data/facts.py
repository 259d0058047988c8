"""What a run's data is, as facts: for the paragraph at the start of a run, and for its JSON record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hf_lpwd.messages import counted, escaped, listed
from hf_lpwd.vision.data.decoding import Scale


@dataclass(frozen=True)
class SplitFacts:
    """One split as it is used.

    Attributes:
        images: Images in use.
        source: Where they come from, e.g. ``"train"`` or ``"15% of train"``.
        available: Images that this source has: more than `images` if `max_eval_samples` or
            `max_train_samples` is set, or if some cannot be decoded and are left out.
    """

    images: int
    source: str
    available: int


@dataclass(frozen=True)
class ImageFacts:
    """What a sample of up to 64 images shows; None where no image of the sample can be read.

    Attributes:
        smallest: Height and width of the smallest image, in pixels.
        largest: Height and width of the largest.
        scale: Which stored values become 255, if there are grey images of more than 8 bits.
        lowest: Lowest value, after scaling to 0..255.
        highest: Highest value, after scaling.
        looked_at: Images in the sample.
        upper_bits: How many of them have more than 8 bits a colour, of which only the upper 8 are read.
    """

    smallest: tuple[int, int]
    largest: tuple[int, int]
    scale: Scale | None
    lowest: int
    highest: int
    looked_at: int = 0
    upper_bits: int = 0


@dataclass(frozen=True)
class DataFacts:
    """What the data of a run is, and what of it is not used.

    Attributes:
        name: The dataset's name or path.
        splits: The splits in use, by role.
        class_names: Name of each class.
        images: Sizes and values of the images.
        without_training_images: Classes that no training image has.
        first_seen: For validation and test: classes that occur there and not in the training images.
        unmeasured: For validation and test: classes that occur in the training images and not there.
        left_out: Files and rows that are not used: why, and how many.
        shared: For validation and test: how many of its images are also among the training images; None if
            the dataset is too large to compare.
        notes: Decisions that were made about the data, a sentence each.
    """

    name: str
    splits: dict[str, SplitFacts]
    class_names: list[str]
    images: ImageFacts | None = None
    without_training_images: list[str] = field(default_factory=list)
    first_seen: dict[str, list[str]] = field(default_factory=dict)
    unmeasured: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Returns the facts as one paragraph.

        Example:
            >>> splits = {"train": SplitFacts(1, "train", 1), "test": SplitFacts(10, "test", 40)}
            >>> print(DataFacts("pets", splits, ["cat", "dog"]).describe())
            pets: train 1 image (train), test 10 of 40 images (test); 2 classes (cat, dog).
        """
        splits = ", ".join(self._split(role) for role in self.splits)
        classes = counted(len(self.class_names), "class", "classes")
        sentences = [f"{self.name}: {splits}; {classes} ({list_names(self.class_names, 10)})"]
        if self.images is not None:
            sentences.append(_images(self.images))
        if self.without_training_images:
            sentences.append(f"Without a training image: {list_names(self.without_training_images)}")
        sentences += [f"First seen in {role}: {list_names(names)}" for role, names in self.first_seen.items()]
        sentences += [f"Not in {role}: {list_names(names)}" for role, names in self.unmeasured.items()]
        if self.left_out:
            listed = ", ".join(f"{why} ({count})" for why, count in self.left_out.items())
            sentences.append(f"Left out: {listed}")
        for role, count in (self.shared or {}).items():
            if count:
                are = f"{role} image is also a training image", f"{role} images are also training images"
                sentences.append(counted(count, *are))
        sentences += self.notes
        return escaped(" ".join(f"{sentence.removesuffix('.')}." for sentence in sentences))

    def without_undecodable(self, skipped: Mapping[str, int]) -> DataFacts:
        """Returns the facts after the given number of images of each split could not be decoded."""
        splits, left_out = dict(self.splits), dict(self.left_out)
        for role, count in skipped.items():
            if count:
                splits[role] = replace(splits[role], images=splits[role].images - count)
                left_out[f"{role} image that cannot be decoded"] = count
        return replace(self, splits=splits, left_out=left_out)

    def _split(self, role: str) -> str:
        split = self.splits[role]
        number = f"{split.images:,}" + (f" of {split.available:,}" if split.images < split.available else "")
        noun = "image" if split.available == 1 else "images"
        return f"{f'{role} ' if len(self.splits) > 1 else ''}{number} {noun} ({split.source})"


def _images(images: ImageFacts) -> str:
    sizes = [f"{width} x {height}" for height, width in (images.smallest, images.largest)]
    size = " to ".join(dict.fromkeys(sizes))
    bits = "8 bits" if images.scale is None else images.scale.describe()
    text = f"Images of {size} pixels, {bits}, values {images.lowest} to {images.highest} of 255"
    if images.upper_bits:
        of = f"{images.upper_bits} of {images.looked_at}"
        text += f"; {of} have more bits a colour, of which the upper 8 are read"
    return text


def list_names(names: Iterable[str], most: int = 6) -> str:
    """Returns names in a row, `escaped`; of many or long ones the beginning.

    Example:
        >>> list_names(["cat", "dog", "fox"], most=2)
        'cat, dog and 1 more'
    """
    shown = map(escaped, names)
    return listed([name if len(name) <= 40 else name[:37] + "..." for name in shown], most)
