"""The former place of `hf_lpwd.vision.data.decoding`, for code that imports it from here."""

from hf_lpwd.vision.data.decoding import image_size, read_image, read_images

__all__ = ["image_size", "read_image", "read_images"]
