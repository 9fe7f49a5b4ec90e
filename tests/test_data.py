"""Images, preprocessing, idx files, MNIST folders and the bundled samples.

Oracles: files written byte by byte with struct, Pillow called directly, and literals.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.conventions import ConfigError, DataError, RefimplError
from refimpl.data import bundled, idx, images, mnist
from refimpl.data.preprocessing import Preprocessing

RNG = np.random.default_rng(20)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *more, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def idx_bytes(code: int, shape: tuple[int, ...], elements: bytes) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape) + elements


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encoded(Image.fromarray(GREY)), GREY, id="grey"),
        pytest.param(encoded(Image.fromarray(RGB)), RGB, id="rgb"),
        pytest.param(encoded(Image.fromarray(RGB), "BMP"), RGB, id="bmp"),
        pytest.param(encoded(Image.fromarray(RGB), "TIFF"), RGB, id="tiff"),
        pytest.param(encoded(Image.fromarray(RGB), "WEBP", lossless=True), RGB, id="webp"),
        pytest.param(encoded(Image.fromarray(GREY), "GIF"), np.stack([GREY] * 3, -1), id="gif"),
        pytest.param(
            # one row of 65535, 32768, 256, 0: 32768 / 257 = 127.50, 256 / 257 = 0.996
            png(4, 1, 16, 0, b"\0" + struct.pack(">4H", 65535, 32768, 256, 0)),
            np.array([[255, 128, 1, 0]]),
            id="16 bits",
        ),
        pytest.param(
            b"P5 2 1 65535\n" + struct.pack(">2H", 65535, 257), np.array([[255, 1]]), id="pgm 16"
        ),
        pytest.param(png(3, 1, 1, 0, b"\0\xa0"), np.array([[255, 0, 255]]), id="1 bit"),
        pytest.param(
            png(2, 1, 8, 3, b"\0\1\0", png_chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4]))),
            np.array([[[6, 5, 4], [9, 8, 7]]]),
            id="palette",
        ),
        pytest.param(
            png(
                2,
                1,
                8,
                3,
                b"\0\0\1",
                png_chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])),
                png_chunk(b"tRNS", bytes([0, 255])),
            ),
            np.array([[[255, 255, 255], [6, 5, 4]]]),
            id="transparent palette",
        ),
        pytest.param(
            # (10 * 51 + 255 * 204) / 255 = 206; opaque stays; transparent is white
            png(3, 1, 8, 6, bytes([0, 10, 10, 10, 51, 1, 2, 3, 255, 1, 2, 3, 0])),
            np.array([[[206, 206, 206], [1, 2, 3], [255, 255, 255]]]),
            id="rgba",
        ),
        pytest.param(
            png(2, 1, 8, 4, bytes([0, 7, 255, 7, 0])),
            np.array([[[7, 7, 7], [255, 255, 255]]]),
            id="grey and alpha",
        ),
        pytest.param(
            encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"),
            np.zeros((1, 1, 3)),
            id="cmyk",
        ),
    ],
)
def test_formats_and_modes(tmp_path, content, expected):
    path = tmp_path / "picture.any"
    path.write_bytes(content)
    image = images.open_image(path)
    assert image.mode == ("L" if expected.ndim == 2 else "RGB")
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),  # the camera was turned: rotate clockwise to see it
        (7, lambda a: a[::-1, ::-1].T),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images.decode(encoded(Image.fromarray(GREY), exif=exif), "turned.png")
    np.testing.assert_array_equal(np.asarray(image), upright(GREY))


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
        *("LA", "PA", "RGBA", "RGBa", "La"),
        *("I", "I;16", "I;16L", "I;16B"),
    ],
)
def test_every_mode_of_pillow_becomes_grey_or_rgb(mode):
    image = images.to_plain(Image.new(mode, (3, 2)))
    assert image.mode in ("L", "RGB")
    assert image.size == (3, 2)


def test_pil_images_are_turned_too():
    """Somebody's own Image.open must not give another picture than the path."""
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encoded(Image.fromarray(GREY), exif=exif)))
    plain = Preprocessing(size=(7, 5), mode="grey", mean=(0.0,), std=(1 / 255,))
    np.testing.assert_allclose(plain.apply(opened)[0], np.rot90(GREY, -1), rtol=1e-6)


def test_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((3, 4), value, np.uint8)) for value in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(np.asarray(images.decode(content, "two.gif"))).tolist() == [10]


def test_unreadable_image_paths(tmp_path):
    assert_one_line(lambda: images.open_image(tmp_path / "none.png"), "No such file", "none.png")
    assert_one_line(lambda: images.open_image(tmp_path), "directory", str(tmp_path))
    assert_one_line(lambda: images.open_image("a\0b.png"), "null byte", "b.png")


def assert_one_line(call, message: str, name: str, kind: type[RefimplError] = DataError) -> None:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert message in text
    assert name in text
    assert "\n" not in text


# --- preprocessing --------------------------------------------------------------------------------


def test_mnist_scaling_is_the_usual_one():
    pixels = np.zeros((1, 28, 28), np.uint8)
    pixels[0, 3, 4] = 255
    x = mnist.PREPROCESSING.apply_array(pixels)
    assert x.shape == (1, 1, 28, 28)
    assert x.dtype == np.float32
    assert x[0, 0, 0, 0] == np.float32(-0.42421293)  # (0 - 0.1307) / 0.3081
    assert x[0, 0, 3, 4] == np.float32(2.8214865)  # (1 - 0.1307) / 0.3081


def test_channels_have_their_own_mean_and_std():
    rgb = Preprocessing(size=(1, 1), mode="rgb", mean=(0.0, 1.0, 0.2), std=(1.0, 0.5, 0.25))
    x = rgb.apply_array(np.array([[[[255, 0, 102]]]], np.uint8))
    np.testing.assert_array_equal(x, np.float32([1.0, -2.0, 0.8]).reshape(1, 3, 1, 1))


def test_inverted():
    dark_on_light = Preprocessing(size=(1, 2), mode="grey", mean=(0.0,), std=(1.0,), invert=True)
    x = dark_on_light.apply_array(np.array([[[0, 255]]], np.uint8))
    assert x.tolist() == [[[[1.0, 0.0]]]]


@pytest.mark.parametrize("mode", ["grey", "rgb"])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("crop", [1.0, 0.6])
@pytest.mark.parametrize("size", [(5, 7), (4, 9)])
def test_both_ways_in_agree(mode, colour, crop, size):
    channels = 1 if mode == "grey" else 3
    preprocessing = Preprocessing(
        size=size, mode=mode, mean=(0.3,) * channels, std=(0.2,) * channels, crop=crop
    )
    arrays = np.stack([RGB, RGB[::-1]]) if colour else np.stack([GREY, GREY[::-1], GREY[:, ::-1]])
    together = preprocessing.apply_array(arrays)
    assert together.shape == (len(arrays), channels, *size)
    for array, x in zip(arrays, together, strict=True):
        np.testing.assert_array_equal(preprocessing.apply(Image.fromarray(array)), x)


def test_crop_keeps_the_middle():
    pixels = np.zeros((4, 8), np.uint8)
    pixels[1:3, 2:6] = 255
    half = Preprocessing(size=(2, 4), mode="grey", mean=(0.0,), std=(1.0,), crop=0.5)
    np.testing.assert_array_equal(half.apply(Image.fromarray(pixels)), np.ones((1, 2, 4)))


def test_resizing_averages_and_keeps_rows_apart_from_columns():
    pixels = np.array([[0, 0, 255, 255], [255, 255, 255, 255]], np.uint8)
    small = Preprocessing(
        size=(2, 2), mode="grey", mean=(0.0,), std=(1.0,), resampling="box"
    )  # fmt: skip
    assert small.apply(Image.fromarray(pixels)).tolist() == [[[0.0, 1.0], [1.0, 1.0]]]


def test_no_images_give_an_empty_batch():
    empty = np.empty((0, 9, 9), np.uint8)
    assert mnist.PREPROCESSING.apply_array(empty).shape == (0, 1, 28, 28)


def test_preprocessing_through_json():
    text = json.dumps(mnist.PREPROCESSING.to_json())
    assert json.loads(text) == {
        "size": [28, 28], "mode": "grey", "mean": [0.1307], "std": [0.3081],
        "resampling": "bilinear", "crop": 1.0, "invert": False, "brightness": [0.0254, 0.3976],
        "contrast": 0.7776, "colour": None,
    }  # fmt: skip
    assert Preprocessing.from_json(json.loads(text)) == mnist.PREPROCESSING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [28]}, "size is (28,)"),
        ({"size": [28, 0]}, "size is (28, 0)"),
        ({"size": [28, 28.5]}, "size is (28, 28.5)"),
        ({"size": 28}, "size is 28"),
        ({"mode": "RGBA"}, "mode is 'RGBA', expected grey or rgb"),
        ({"mode": ["grey"]}, "mode is ['grey']"),
        ({"mode": "rgb"}, "mean is (0.5,), expected 3"),
        ({"mean": [float("nan")]}, "mean is (nan,)"),
        ({"mean": "0.5"}, "mean is '0.5'"),
        ({"std": [0.0]}, "std is (0.0,)"),
        ({"std": [True]}, "std is (True,)"),
        ({"resampling": "cubic"}, "resampling is 'cubic'"),
        ({"crop": 0}, "crop is 0"),
        ({"crop": 1.5}, "crop is 1.5"),
        ({"invert": "no"}, "invert is 'no'"),
        ({"brightness": 0.5}, "brightness is 0.5"),
        ({"brightness": [0.5]}, "brightness is (0.5,), expected two"),
        ({"brightness": [0.5, 0.4]}, "brightness is (0.5, 0.4), expected low before high"),
        ({"contrast": 1.5}, "contrast is 1.5, expected a number from 0 to 1"),
        ({"colour": "much"}, "colour is 'much', expected a number"),
        ({"size": [2**12, 2**12 + 1]}, "expected at most 16777216 pixels"),
        ({"brightness": [0.1, float("inf")]}, "brightness is (0.1, inf), expected two finite"),
        ({"margin": 4}, "unknown field 'margin'"),
    ],
)
def test_bad_preprocessing(change, message):
    fields = {"size": [28, 28], "mode": "grey", "mean": [0.5], "std": [0.5]}
    call = lambda: Preprocessing.from_json(fields | change)  # noqa: E731
    assert_one_line(call, message, "preprocessing", ConfigError)


def test_preprocessing_with_a_field_missing():
    fields = {"size": [28, 28], "mode": "grey", "mean": [0.5]}
    assert_one_line(
        lambda: Preprocessing.from_json(fields), "missing field 'std'", "preprocessing", ConfigError
    )
    assert_one_line(lambda: Preprocessing.from_json([1]), "[1]", "preprocessing", ConfigError)


def test_plain_preprocessing_divides_by_255():
    colour = Preprocessing.plain((5, 7), 3)
    np.testing.assert_allclose(colour.apply_array(RGB[None])[0], RGB.transpose(2, 0, 1) / 255)
    assert Preprocessing.plain((5, 7), 1).mode == "grey"
    call = lambda: Preprocessing.plain((5, 7), 2)  # noqa: E731
    assert_one_line(call, "2 channels", "expected 1 (grey) or 3 (RGB)", ConfigError)


@pytest.mark.parametrize("invert", [False, True])
def test_measured_images_come_out_with_mean_0_and_std_1(invert):
    pixels = np.stack([RGB, RGB // 2, RGB // 3])
    plain = dataclasses.replace(Preprocessing.plain((5, 7), 3), invert=invert)
    measured = plain.measured(pixels)
    x = measured.apply_array(pixels)
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, atol=1e-3)
    expected = [(RGB // 3).mean() / 255, RGB.mean() / 255]
    np.testing.assert_allclose(measured.brightness, expected, atol=1e-4)
    assert all(measured.unlike(image) is None for image in pixels)
    assert (measured.size, measured.mode, measured.invert) == ((5, 7), "rgb", invert)


def test_measured_images_of_one_level_divide_by_1():
    measured = Preprocessing.plain((2, 3), 1).measured(np.full((4, 2, 3), 51, np.uint8))
    assert (measured.mean, measured.std, measured.brightness) == ((0.2,), (1.0,), (0.2, 0.2))
    assert (measured.contrast, measured.colour) == (0.0, None)


def test_contrast_and_colourfulness_are_measured_by_hand():
    """Of half 0 and half 255 the contrast is 1; of 51 and 102 it is 0.1 / sqrt(0.3 * 0.7)."""
    pixels = np.array([[[0, 255, 255, 0]], [[51, 102, 102, 51]]], np.uint8)
    grey = Preprocessing.plain((1, 4), 1).measured(pixels)
    assert grey.contrast == pytest.approx(0.1 / 0.21**0.5, abs=1e-4)
    colour = np.zeros((2, 1, 4, 3), np.uint8)
    colour[0, ..., 0] = 51  # the brightest channel is 51 above the darkest
    assert Preprocessing.plain((1, 4), 3).measured(colour).colour == 0.2
    assert grey.inverted().contrast == grey.contrast


@pytest.mark.parametrize(("pixels", "words"), [
    ([0, 255, 255, 0], None), ([51, 102, 102, 51], None),
    ([60, 90, 90, 60], "contrast 0.13, the images of the training had 0.22 or more"),
    ([128, 127, 127, 128], "contrast 0.00, the images of the training had 0.22 or more"),
])  # fmt: skip
def test_contrast_is_judged(pixels, words):
    seen = dataclasses.replace(Preprocessing.plain((1, 4), 1), contrast=0.2182)
    assert seen.unlike(np.array([pixels], np.uint8)) == words


def test_colours_are_judged():
    seen = dataclasses.replace(Preprocessing.plain((2, 2), 3), colour=0.2)
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 51
    assert seen.unlike(red) is None
    red[..., 0] = 102
    words = "colourfulness 0.40, the images of the training had 0.20 or less"
    assert seen.unlike(red) == words


@pytest.mark.parametrize(("found", "seen", "words"), [
    (129, (0.5, 0.5), "brightness 0.51, the images of the training had 0.50 to 0.50"),
    (128, (0.5, 0.5), "brightness 0.502, the images of the training had 0.500 to 0.500"),
    (200, (0.1, 0.12), "brightness 0.78, the images of the training had 0.10 to 0.12"),
])  # fmt: skip
def test_numbers_that_differ_are_shown_apart(found, seen, words):
    preprocessing = dataclasses.replace(Preprocessing.plain((1, 1), 1), brightness=seen)
    assert preprocessing.unlike(np.array([[found]], np.uint8)).startswith(words)


@pytest.mark.parametrize("path", bundled.photographs(), ids=lambda path: path.stem)
def test_a_photograph_is_no_digit(path):
    """Each of them is told, as it is and in grey, and with colours the remedy is named."""
    ask = refimpl.classifier("didb_micro_mnist", backend="numpy")
    (answer,) = ask(path)
    assert answer.warning
    photo = images.open_image(path)
    (grey,) = ask(photo.convert("L"))
    assert grey.warning and "colours" not in grey.warning
    if np.ptp(np.asarray(photo), axis=-1).mean() > 10:
        assert "it has colours, the model reads grey; the model knows 0, 1, " in answer.warning
        assert answer.warning.endswith("; try --model deit_cifar10 or didb_cifar10")
    (known,) = refimpl.classifier("didb_cifar10", backend="numpy")(path)
    assert known.warning is None
    assert refimpl.segmenter("segmenter_didb_scenes", backend="numpy")(path).warning


@pytest.mark.parametrize(
    ("level", "words"),
    [(0, "brightness 0.00, the images of the training had 0.03 to 0.40"),
     (130, "brightness 0.51"), (230, "dark and light seem to be exchanged")],
)  # fmt: skip
def test_images_unlike_those_of_the_training(level, words):
    assert words in mnist.PREPROCESSING.unlike(np.full((28, 28), level, np.uint8))


def test_digits_are_like_those_of_the_training_unless_dark_on_light():
    """Not one false alarm in the bundled test images, and not one exchanged image missed."""
    pictures, _ = mnist.load(bundled.mnist() / "small", "test")
    assert not any(map(mnist.PREPROCESSING.unlike, pictures))
    assert all("exchanged" in mnist.PREPROCESSING.unlike(255 - picture) for picture in pictures)
    exchanged = mnist.PREPROCESSING.inverted()
    assert not any(map(exchanged.unlike, 255 - pictures))
    np.testing.assert_allclose(
        exchanged.apply_array(255 - pictures), mnist.PREPROCESSING.apply_array(pictures), atol=1e-6
    )
    assert exchanged.inverted().invert is False


def test_without_recorded_brightness_there_is_no_warning():
    assert Preprocessing.plain((28, 28), 1).unlike(np.full((28, 28), 255, np.uint8)) is None
    assert Preprocessing.plain((28, 28), 1).inverted().brightness is None


@pytest.mark.parametrize(
    "array", [np.zeros((2, 28, 28)), np.zeros((28, 28), np.uint8), np.zeros((2, 9, 9, 4), np.uint8)]
)
def test_arrays_that_are_no_images(array):
    assert_one_line(lambda: mnist.PREPROCESSING.apply_array(array), "expected uint8", "images")


# --- idx ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "letter", "dtype"),
    [(8, "B", "u1"), (9, "b", "i1"), (11, "h", "i2"), (12, "i", "i4"), (13, "f", "f4"),
     (14, "d", "f8")],
)  # fmt: skip
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_types(tmp_path, code, letter, dtype, pack):
    values = [1, 2, 3, 100, 5, 6]
    path = tmp_path / "file"
    path.write_bytes(pack(idx_bytes(code, (2, 3), struct.pack(f">6{letter}", *values))))
    array = idx.read(path)
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert array.tolist() == [[1, 2, 3], [100, 5, 6]]


def test_unreadable_idx_paths(tmp_path):
    assert_one_line(lambda: idx.read(tmp_path / "none"), "No such file", str(tmp_path / "none"))
    assert_one_line(lambda: idx.read(tmp_path), "directory", str(tmp_path))


# --- MNIST ----------------------------------------------------------------------------------------


def write_mnist(folder, split="t10k", pixels=None, labels=(3, 1, 4), form="{}-{}-idx{}-ubyte"):
    pixels = bytes(28 * 28 * 3) if pixels is None else pixels
    folder.mkdir(exist_ok=True)
    write = gzip.compress if form.endswith(".gz") else bytes
    pictures = idx_bytes(8, (len(pixels) // 784, 28, 28), pixels)
    (folder / form.format(split, "images", 3)).write_bytes(write(pictures))
    (folder / form.format(split, "labels", 1)).write_bytes(
        write(idx_bytes(8, (len(labels),), bytes(labels)))
    )
    return folder


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize(
    "form",
    ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte.gz"],
)
def test_mnist_under_each_of_its_names(tmp_path, split, prefix, form):
    pixels = RNG.integers(0, 256, 3 * 784, dtype=np.uint8)
    pictures, labels = mnist.load(write_mnist(tmp_path, prefix, pixels.tobytes(), form=form), split)
    assert (pictures.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(pictures, pixels.reshape(3, 28, 28))
    assert labels.tolist() == [3, 1, 4]


def test_mnist_folders_that_are_none(tmp_path):
    def refused(folder, message, name, split="test"):
        assert_one_line(lambda: mnist.load(folder, split), message, name)

    refused(tmp_path / "none", "no such folder", "none")
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "t10k-images-idx3-ubyte, t10k-images-idx3-ubyte.gz", "void")
    good = write_mnist(tmp_path / "good")
    refused(good, "train-images-idx3-ubyte", "good", split="train")
    refused(good, "split is 'validation'", "train or test", split="validation")
    assert mnist.found_in(good)
    assert not mnist.found_in(tmp_path / "void")
    assert not mnist.found_in(tmp_path / "none")


# --- bundled samples ------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("train", 200), ("test", 50)])
def test_bundled_data_set_is_balanced(split, count):
    pictures, labels = mnist.load(bundled.mnist() / "small", split)
    assert pictures.shape == (10 * count, 28, 28)
    assert np.bincount(labels).tolist() == [count] * 10


def test_bundled_digits_are_images_of_the_test_set():
    pictures, labels = mnist.load(bundled.mnist() / "small", "test")
    digits = bundled.digits()
    assert [path.name[0] for path in digits] == list("0123456789")
    for path in digits:
        digit = np.asarray(images.open_image(path))
        (found,) = np.flatnonzero((pictures == digit).all(axis=(1, 2)))
        assert labels[found] == int(path.name[0])


def test_bundled_samples_say_where_they_come_from():
    text = (bundled.mnist() / "README.md").read_text()
    for word in ("LeCun", "Cortes", "Burges", "creativecommons.org/licenses/by-sa/3.0"):
        assert word in text


CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer"}
CIFAR10 |= {"dog", "frog", "horse", "ship", "truck"}


def test_bundled_photographs_name_a_class_and_are_small_rgb_images():
    paths = bundled.photographs()
    classes = {path.name.split("_")[0] for path in paths}
    assert len(classes) >= 3 and classes <= CIFAR10
    for path in paths:
        photo = images.open_image(path)
        assert (photo.mode, photo.size) == ("RGB", (256, 256))
        assert np.asarray(photo).std() > 10
        assert path.stat().st_size < 32_000


def test_bundled_photographs_say_where_they_come_from():
    text = (bundled.photos() / "README.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert sorted(rows) == [path.name for path in bundled.photographs()]
    for row in rows.values():
        assert "| CC0 1.0 |" in row or "| public domain |" in row


def test_what_is_no_file_is_no_image_of_a_folder(tmp_path) -> None:
    """To open a pipe would wait for somebody who writes."""
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no images in it"):
        images.in_folder(tmp_path)
    (tmp_path / "link.png").symlink_to("nothing")  # told when it is opened
    (tmp_path / "one.png").write_bytes(b"")
    assert [path.name for path in images.in_folder(tmp_path)] == ["link.png", "one.png"]
