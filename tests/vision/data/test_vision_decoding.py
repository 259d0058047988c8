from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from encoded_images import cell, encode, noise, pngs
from PIL import Image
from transformers.image_utils import load_image

from hf_lpwd.vision.data.decoding import (
    Scale,
    deep_highest,
    image_size,
    image_suffixes,
    keeps_upper_bits,
    read_image,
    read_images,
)

PALETTE = Image.fromarray(noise(9, 7, 3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)


MODES = {
    "1": (Image.fromarray(noise(9, 7)).convert("1"), "PNG"),
    "L": (Image.fromarray(noise(9, 7)), "PNG"),
    "LA": (Image.fromarray(noise(9, 7, 2), "LA"), "PNG"),
    "P": (PALETTE, "PNG"),
    "P with transparency": (PALETTE, "GIF"),
    "RGB": (Image.fromarray(noise(9, 7, 3)), "PNG"),
    "RGBA": (Image.fromarray(noise(9, 7, 4), "RGBA"), "PNG"),
    "one pixel": (Image.fromarray(noise(1, 1, 3)), "PNG"),
    "RGB in JPEG": (Image.fromarray(noise(9, 7, 3)), "JPEG"),
    "grey in JPEG": (Image.fromarray(noise(9, 7)), "JPEG"),
    "CMYK in JPEG": (Image.fromarray(noise(9, 7, 4), "CMYK"), "JPEG"),
    "WebP": (Image.fromarray(noise(9, 7, 3)), "WEBP"),
    "BMP": (Image.fromarray(noise(9, 7, 3)), "BMP"),
    "TIFF": (Image.fromarray(noise(9, 7, 3)), "TIFF"),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_gives_the_image_of_the_pipeline(name):
    image, file_format = MODES[name]
    options = {"transparency": 0} if name == "P with transparency" else {}
    content = encode(image, file_format, **options)
    decoded = read_image(cell(content))
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(load_image(opened))
    assert decoded.dtype == np.uint8
    assert decoded.transpose(1, 2, 0).flags["C_CONTIGUOUS"]
    assert decoded.flags["WRITEABLE"]
    assert (decoded == expected.transpose(2, 0, 1)).all()
    assert image_size(cell(content)) == decoded.shape[1:]


def test_exact_values_of_grey_alpha_and_palette():
    grey = noise(5, 6)
    assert (read_image(cell(encode(Image.fromarray(grey)))) == grey).all()
    rgba = noise(5, 6, 4)
    assert (read_image(cell(encode(Image.fromarray(rgba, "RGBA")))) == rgba[..., :3].transpose(2, 0, 1)).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([1, 0])
    assert read_image(cell(encode(palette))).tolist() == [[[40, 10]], [[50, 20]], [[60, 30]]]


@pytest.mark.parametrize(
    ("values", "file_format", "expected"),
    [
        (np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16), "PNG", [0, 0, 1, 1, 128, 255]),
        (np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16), "TIFF", [0, 0, 1, 1, 128, 255]),
        (np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.int32), "TIFF", [0, 0, 1, 1, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), "TIFF", [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.6, 255.0]], dtype=np.float32), "TIFF", [0, 0, 2, 255]),
    ],
)
def test_more_than_8_bits_are_scaled(values, file_format, expected):
    decoded = read_image(cell(encode(Image.fromarray(values), file_format)))
    assert decoded.tolist() == [[expected]] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[-1, 5]], dtype=np.int32), "grey values from -1 to 5, expected 0 to 255"),
        (np.array([[0, 65536]], dtype=np.int32), "grey values from 0 to 65536, expected 0 to 65535"),
        (np.array([[0, 300]], dtype=np.float32), "grey values from 0.0 to 300.0, expected 0 to 255"),
        (np.array([[0, np.nan]], dtype=np.float32), "grey values from nan to nan, expected 0 to 1"),
    ],
)
def test_grey_values_of_no_known_range(values, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_image(cell(encode(Image.fromarray(values), "TIFF")))


@pytest.mark.parametrize(("dtype", "dark", "light"), [(np.float32, 1, 200), (np.uint16, 250, 4000)])
def test_a_crop_has_the_values_of_the_whole(dtype, dark, light):
    values = np.full((32, 32), dark, dtype=dtype)
    values[16:] = light
    content = cell(encode(Image.fromarray(values), "TIFF"))
    part = read_image(content, lambda height, width: (0, 0, 16, 32), (16, 32))
    assert (part == read_image(content)[:, :16]).all()
    assert part.max() == round(dark * 255 / {200: 255, 4000: 4095}[light])


@pytest.mark.parametrize(
    ("value", "dtype", "scale", "expected"),
    [
        (100, np.uint16, Scale(integers=255), 100),
        (1023, np.uint16, Scale(integers=1023), 255),
        (1023, np.uint16, Scale(), 4),
        (1.0, np.float32, Scale(), 255),
        (1.0, np.float32, Scale(floats=255), 1),
    ],
)
def test_the_scale_may_be_given(value, dtype, scale, expected):
    content = encode(Image.fromarray(np.full((2, 2), value, dtype=dtype)), "TIFF")
    assert np.unique(read_image(cell(content), scale=scale)).tolist() == [expected]
    [decoded] = read_images([cell(content)], [None], scale=scale)
    assert np.unique(decoded).tolist() == [expected]


def png_16(values, channels, orientation=None):
    """Returns a PNG of 16 bits a channel, which PIL cannot write; uint16 [H, W, channels]."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = b""
    if orientation is not None:
        tags = Image.Exif()
        tags[0x0112] = orientation
        exif = chunk(b"eXIf", tags.tobytes().removeprefix(b"Exif\0\0"))
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), exif, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("highest", "white"), [(200, 255), (1000, 1023), (4095, 4095), (65535, 65535)])
def test_16_bits_a_colour_are_read_and_scaled(channels, highest, white):
    values = np.random.default_rng(0).integers(0, highest, (5, 7, channels), np.uint16)
    values[0, 0] = highest
    content = cell(png_16(values, channels))
    colours = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    expected = np.rint(colours * (255 / white)).astype(np.uint8).transpose(2, 0, 1)
    decoded = read_image(content)
    assert (decoded == expected).all()
    assert decoded.transpose(1, 2, 0).flags["C_CONTIGUOUS"]
    assert deep_highest(content) == highest
    assert not keeps_upper_bits(content)
    assert image_size(content) == (5, 7)
    part = read_image(content, lambda height, width: [1, 2, 3, 4], (3, 4))
    assert (part == expected[:, 1:4, 2:6]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_a_colour_are_turned_as_8_are(orientation):
    values = noise(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = read_image(cell(encode(Image.fromarray(values), exif=exif)))
    deep = read_image(cell(png_16(values * np.uint16(257), 3, orientation)), scale=Scale())
    assert (deep == turned).all()


def test_a_damaged_file_of_16_bits_a_colour_is_refused():
    content = png_16(np.zeros((50, 50, 3), np.uint16) + np.arange(50, dtype=np.uint16)[:, None, None], 3)
    with pytest.raises(ValueError, match="truncated"):
        read_image(cell(content[: len(content) // 2]))


def test_of_grey_with_alpha_and_16_bits_the_upper_ones_are_read():
    values = np.random.default_rng(0).integers(0, 65535, (5, 7, 2), np.uint16)
    content = cell(png_16(values, 2))
    assert keeps_upper_bits(content)
    assert deep_highest(content) is None
    assert (read_image(content) == values[..., 0] >> 8).all()
    assert not any(map(keeps_upper_bits, map(cell, (*pngs(1), png_16(values[..., :1], 1)))))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_16_bits_a_colour_is_read_whole(order, compressed):
    values = np.random.default_rng(0).integers(0, 4095, (4, 6, 3), np.uint16)
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if compressed else strip
    bits_at = 8 + len(strip)
    tags = [
        *(("H", 256, 6), ("H", 257, 4), ("I", 258, bits_at), ("H", 259, 8 if compressed else 1)),
        *(("H", 262, 2), ("I", 273, 8), ("H", 277, 3), ("H", 278, 4), ("I", 279, len(strip))),
    ]
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", bits_at + 6) + strip
    content += struct.pack(f"{order}HHHH", 16, 16, 16, len(tags))
    for kind, tag, value in tags:
        count = 3 if tag == 258 else 1
        form = 3 if kind == "H" or tag == 258 else 4
        content += struct.pack(f"{order}HHI{kind}", tag, form, count, value).ljust(12, b"\0")
    content = cell(content + bytes(4))
    assert deep_highest(content) == values.max()
    assert not keeps_upper_bits(content)
    expected = np.rint(values * (255 / 4095)).astype(np.uint8).transpose(2, 0, 1)
    assert (read_image(content) == expected).all()


def test_a_heic_file_says_what_reads_it(monkeypatch):
    """Also one that is called something else, as it comes from telephones."""
    content = b"\0\0\0\x1cftypheic" + bytes(100)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(ValueError, match=r"^a HEIC image, which needs `pip install pillow-heif`$"):
        read_image(cell(content))


def test_a_heic_file_is_read_where_its_library_is():
    pytest.importorskip("pillow_heif")
    flat = Image.new("RGB", (64, 32), (200, 100, 50))
    decoded = read_image(cell(encode(flat, "HEIF", quality=100)))
    assert decoded.shape == (3, 32, 64)
    assert np.abs(decoded.mean(axis=(1, 2)) - (200, 100, 50)).max() < 3
    assert {".heic", ".heif"} <= image_suffixes()


def test_a_value_above_the_scale_is_refused():
    content = encode(Image.fromarray(np.full((2, 2), 5000, dtype=np.uint16)), "TIFF")
    with pytest.raises(ValueError, match=r"^grey values from 5000 to 5000, expected 0 to 4095$"):
        read_image(cell(content), scale=Scale(integers=4095))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(noise(9, 7, 3)), file_format, exif=exif)
    with Image.open(io.BytesIO(content)) as opened:
        plain = np.asarray(opened)
        expected = np.asarray(load_image(opened))
    decoded = read_image(cell(content))
    assert decoded.shape == ((3, 9, 7) if orientation < 5 else (3, 7, 9))
    assert (decoded == expected.transpose(2, 0, 1)).all()
    assert (orientation == 1) == (decoded.shape[1:] == (9, 7) and (decoded == plain.transpose(2, 0, 1)).all())


def test_a_path_is_read_where_there_are_no_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(pngs(1)[0])
    assert (
        read_image({"bytes": None, "path": str(tmp_path / "a.png")}) == read_image(cell(pngs(1)[0]))
    ).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", MODES)
def test_a_part_is_that_of_the_upright_image(name, orientation):
    image, file_format = MODES[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(image, file_format, **({} if file_format in ("GIF", "BMP") else {"exif": exif}))
    whole = read_image(cell(content))
    seen = []

    def box(height, width):
        seen.append((height, width))
        return [height // 3, width // 4, height - height // 3, width // 2 or 1]

    part = read_image(cell(content), box, (4, 4))
    assert seen == [whole.shape[1:]]
    top, left, height, width = box(*whole.shape[1:])
    assert (part == whole[:, top : top + height, left : left + width]).all()
    assert part.flags["WRITEABLE"]


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((300, 201), (1200, 800)),  # a half would keep less than twice 201
        ((300, 200), (600, 400)),
        ((100, 101), (600, 400)),
        ((100, 100), (300, 200)),
        ((50, 50), (150, 100)),
        ((25, 25), (150, 100)),  # there is no less than an eighth
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(size, reduced, orientation, file_format):
    """Half of the width of 1600 x 1200; turned, the same part of the upright image."""
    smooth = Image.fromarray(noise(12, 16, 3)).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(smooth, file_format, quality=95, exif=exif)
    upright = read_image(cell(content))

    def box(height, width):
        return [0, 400, 1200, 800] if orientation == 1 else [400, 0, 800, 1200]

    size, reduced = (size, reduced) if orientation == 1 else (size[::-1], reduced[::-1])
    part = read_image(cell(content), box, size)
    assert part.shape == (3, *reduced)
    top, left, height, width = box(*upright.shape[1:])
    whole = Image.fromarray(upright[:, top : top + height, left : left + width].transpose(1, 2, 0))
    resized = [
        np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), dtype=float)
        for image in (Image.fromarray(np.ascontiguousarray(part.transpose(1, 2, 0))), whole)
    ]
    assert np.abs(resized[0] - resized[1]).mean() < 1


def test_without_a_size_nothing_is_reduced():
    content = encode(Image.fromarray(noise(64, 64, 3)), "JPEG")
    assert read_image(cell(content), lambda height, width: [0, 0, height, width]).shape == (3, 64, 64)
    assert read_image(cell(content), None, (4, 4)).shape == (3, 64, 64)


@pytest.mark.parametrize("threads", [1, 3])
def test_images_and_errors_keep_their_order_in_threads(threads):
    contents = [*pngs(4), b"x", *pngs(2)]
    results = list(read_images([cell(content) for content in contents], [None] * 7, threads=threads))
    assert isinstance(results[4], ValueError)
    assert str(results[4]) == "not an image in a known format"
    for content, result in zip(contents[:4] + contents[5:], results[:4] + results[5:], strict=True):
        assert (result == read_image(cell(content))).all()
