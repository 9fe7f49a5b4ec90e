"""Damaged metadata never costs the pixels, and Pillow's warnings never reach the user.

Oracles: the array that a file was made from (PNG, TIFF), the same file without metadata (JPEG).
"""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

import refimpl
from refimpl import predictors
from refimpl.conventions import DataError
from refimpl.data import images, metadata
from refimpl.data.preprocessing import Preprocessing
from tests.command_line import PATIENCE
from tests.test_data import encoded, png, png_chunk

RNG = np.random.default_rng(1600)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(RGB)
JPEG = encoded(PICTURE, "JPEG")
PNG = encoded(PICTURE)
MAKER, ORIENTATION = 0x010F, 0x0112


def exif(turned: int = 1) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION], made[MAKER] = turned, "of a camera"
    return made


def rational(turned: int) -> bytes:
    """EXIF whose resolution is -1/0, which Pillow reads and cannot write again."""
    entries = struct.pack("<HHIHH", ORIENTATION, 3, 1, turned, 0)
    entries += struct.pack("<HHII", 0x011A, 10, 1, 38)
    directory = struct.pack("<H", 2) + entries + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory + struct.pack("<ii", -1, 0)


def with_exif(block: bytes) -> bytes:
    return encoded(PICTURE, "JPEG", exif=block)


def with_chunk(kind: bytes, body: bytes, good: bool = True) -> bytes:
    """A PNG with one more chunk behind its header, with a good checksum or a wrong one."""
    chunk = png_chunk(kind, body)
    chunk = chunk if good else chunk[:-4] + b"junk"
    return PNG[:33] + chunk + PNG[33:]


def tiff(tag: int, value: int) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[tag] = value
    info.tagtype[tag] = 4
    return encoded(PICTURE, "TIFF", tiffinfo=info)


AVIF = encoded(PICTURE, "AVIF", exif=exif()) if "AVIF" in Image.SAVE else b""
BOMB = b"comment\0\0" + zlib.compress(bytes(2 * 2**20))
DAMAGED = {
    "jpeg, EXIF no TIFF": with_exif(b"Exif\0\0junkjunk"),
    "jpeg, EXIF of no bytes": with_exif(b"Exif\0\0"),
    "jpeg, EXIF cut in its header": with_exif(b"Exif\0\0II*\0"),
    "jpeg, EXIF cut in its entries": with_exif(b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "jpeg, EXIF that points nowhere": with_exif(b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "jpeg, -1/0": with_exif(rational(1)),
    "png, 2 MB of text": with_chunk(b"zTXt", BOMB),
    "png, text that is not packed": with_chunk(b"zTXt", b"comment\0\0junk"),
    "png, wrong checksum": with_chunk(b"tEXt", b"comment\0words", good=False),
    "png, EXIF of another checksum": with_chunk(b"eXIf", b"MM\0*", good=False),
    "png, resolution of three bytes": with_chunk(b"pHYs", b"abc"),
    "png, colour profile": with_chunk(b"iCCP", b"name\0\0junk"),
    "png, EXIF no TIFF": with_chunk(b"eXIf", b"junk"),
    "tiff, EXIF that points nowhere": tiff(34665, 2**30),
    "tiff, EXIF in itself": tiff(34665, 8),
    "tiff, GPS in the header": tiff(34853, 1),
    "avif, EXIF no TIFF": AVIF.replace(b"MM\0*", b"junk"),
}


def expected(content: bytes) -> np.ndarray:
    plain = {b"\xff": JPEG, b"\0": AVIF}.get(content[:1])
    return RGB if plain is None else np.asarray(Image.open(io.BytesIO(plain)))


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damage_beside_the_pixels_costs_nothing(content, recwarn, capfd):
    if not content:
        pytest.skip("Pillow has no AVIF here")
    for action in ("error", "always"):
        warnings.simplefilter(action)
        image = images.decode(content, "damaged")
        np.testing.assert_array_equal(np.asarray(image), expected(content))
        assert images.picture_size(content, "damaged") == (5, 7)
        assert images.orientation_of(content, "damaged") == 1
        lazy = Image.open(io.BytesIO(PNG))  # a user's own Image.open warns as it always does
        np.testing.assert_array_equal(np.asarray(images.to_plain(lazy)), RGB)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("turned", range(1, 9))
def test_what_can_be_read_of_damaged_metadata_is_applied(turned):
    """The orientation stands before the damage."""
    right = np.asarray(images.decode(encoded(PICTURE, exif=exif(turned)), "sound"))
    in_png = with_chunk(b"eXIf", rational(turned)[6:])
    np.testing.assert_array_equal(np.asarray(images.decode(in_png, "rational")), right)
    both = with_chunk(b"eXIf", rational(turned)[6:])
    both = both[:33] + png_chunk(b"zTXt", BOMB) + both[33:]
    np.testing.assert_array_equal(np.asarray(images.decode(both, "and a bomb")), right)
    assert images.picture_size(both, "and a bomb") == right.shape[:2]
    assert images.orientation_of(both, "and a bomb") == turned
    plain = np.asarray(images.decode(with_exif(rational(turned)), "jpeg"))
    assert plain.shape == right.shape
    cut = encoded(PICTURE, "JPEG", exif=exif(turned).tobytes()[:-6])
    np.testing.assert_array_equal(np.asarray(images.decode(cut, "cut")), plain)


@pytest.mark.parametrize("turned", [0, 9, 2**16 - 1])
def test_an_orientation_that_there_is_not_is_upright(turned):
    image = images.decode(encoded(PICTURE, exif=exif(turned)), "odd")
    np.testing.assert_array_equal(np.asarray(image), RGB)


def test_a_picture_is_turned_once():
    content = encoded(PICTURE, exif=exif(6))
    once = images.decode(content, "turned")
    np.testing.assert_array_equal(np.asarray(once), np.rot90(RGB, -1))
    np.testing.assert_array_equal(np.asarray(images.to_plain(once)), np.rot90(RGB, -1))
    opened = Image.open(io.BytesIO(content))
    for _ in range(2):  # the user's own image stays as it is
        np.testing.assert_array_equal(np.asarray(images.to_plain(opened)), np.rot90(RGB, -1))
    assert opened.size == (7, 5) and opened.getexif()[ORIENTATION] == 6


def test_broken_pixels_are_still_refused():
    for content in (JPEG[:-20], PNG[:-30], encoded(PICTURE, "TIFF")[:40]):
        with pytest.raises(DataError, match="cut: "):
            images.decode(content, "cut")


# --- warnings -------------------------------------------------------------------------------------


def warns(module: str) -> bool:
    """Whether a warning of this module would be raised by this thread."""
    try:
        warnings.warn_explicit("words", UserWarning, "file.py", 1, module=module, registry={})
    except UserWarning:
        return True
    return False


def in_thread(function: Callable[[], bool]) -> bool:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_only_pillow_is_quiet_and_only_in_the_thread_that_decodes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with metadata.quiet(), metadata.quiet():
            assert not warns("PIL.TiffImagePlugin")
            assert warns("somebody") and warns("PILLAR")
            assert in_thread(lambda: warns("PIL.TiffImagePlugin"))
            warnings.simplefilter("error")  # somebody's later filter
            with metadata.quiet():
                assert not warns("PIL.TiffImagePlugin")
        assert warns("PIL.TiffImagePlugin")
        assert warnings.filters == before


def test_threads_that_decode_leave_the_warnings_of_the_process_alone(monkeypatch):
    """One begins first and ends first; `catch_warnings` would then bring back the other's."""
    before, image_open = list(warnings.filters), Image.open
    begun, leave = threading.Event(), threading.Event()

    def opened(file: io.BytesIO) -> Image.Image:
        if threading.current_thread() is other:
            begun.set()
            leave.wait(20)
        else:
            leave.set()
            other.join(20)
        return image_open(file)

    other = threading.Thread(target=lambda: images.decode(PNG, "first"))
    monkeypatch.setattr(images.Image, "open", opened)
    other.start()
    assert begun.wait(20)
    images.decode(PNG, "second")
    assert warnings.filters == before


def test_what_pillow_logs_is_left_to_the_application():
    assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger("PIL").handlers)


# --- units ----------------------------------------------------------------------------------------


def key(*values: int) -> bytes:
    return png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


WIDE = (1, 2, 3, 65535, 32768, 256, 40000, 128, 129)  # / 257: 0 0 0, 255 127.5 0.996, 155.6 0.5 0.5
UNITS = {
    "1 bit": (png(4, 1, 1, 0, b"\0\xa0", key(0)), [[255, 255, 255, 255]]),
    "2 bits": (png(4, 1, 2, 0, b"\0\x1b", key(2)), [[0, 85, 255, 255]]),
    "4 bits": (png(4, 1, 4, 0, b"\0\x13\x8f", key(3)), [[17, 255, 136, 255]]),
    "8 bits": (png(2, 1, 8, 0, b"\0\x13\x8f", key(0x13)), [[255, 143]]),
    "8 bits, more in the key": (png(2, 1, 8, 0, b"\0\x13\x8f", key(0x113)), [[255, 143]]),
    "16 bits": (png(2, 1, 16, 0, b"\0\x13\x8f\x13\x00", key(0x1300)), [[19, 255]]),
    "RGB": (png(2, 1, 8, 2, b"\0\1\2\3\1\2\4", key(1, 2, 3)), [[[255] * 3, [1, 2, 4]]]),
    "RGB of 16 bits": (
        png(3, 1, 16, 2, b"\0" + struct.pack(">9H", *WIDE), key(1, 2, 3)),
        [[[255] * 3, [255, 128, 1], [156, 0, 1]]],
    ),
    "RGB of 16 bits, another key": (
        png(3, 1, 16, 2, b"\0" + struct.pack(">9H", *WIDE), key(1, 2, 4)),
        [[[0] * 3, [255, 128, 1], [156, 0, 1]]],
    ),
    "grey and alpha of 16 bits": (
        png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 9, 0, 32768, 65535)),
        [[[255] * 3, [128] * 3]],
    ),
    "RGBA of 16 bits": (
        png(2, 1, 16, 6, b"\0" + struct.pack(">8H", 1, 200, 30000, 65535, 0, 0, 0, 0)),
        [[[0, 1, 117], [255] * 3]],
    ),
}


@pytest.mark.parametrize(("content", "pixels"), UNITS.values(), ids=UNITS)
def test_transparent_colours_and_16_bits_are_taken_in_their_own_units(content, pixels):
    np.testing.assert_array_equal(np.asarray(images.decode(content, "units")), pixels)
    opened = Image.open(io.BytesIO(content))  # not loaded: the same picture as by its path
    np.testing.assert_array_equal(np.asarray(images.to_plain(opened)), pixels)
    opened = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(np.asarray(predictors.opened(opened)), pixels)


TGA_OF_ALPHA = (  # a map of two colours, BGRA, and two pixels from the top
    bytes([0, 1, 1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 2, 0, 1, 0, 8, 0x28])
    + bytes([30, 20, 10, 255, 0, 0, 0, 51])
    + bytes([0, 1])
)


def test_colours_of_a_palette_may_be_transparent():
    """Black of which a fifth is there, on white: 255 - 51 = 204."""
    expected = [[[10, 20, 30], [204, 204, 204]]]
    found = images.decode(TGA_OF_ALPHA, "map.tga")
    np.testing.assert_array_equal(np.asarray(found), expected)
    pixels = np.array([[[10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)
    few = Image.fromarray(pixels).quantize(2)
    assert few.mode == "P" and not few.info
    np.testing.assert_array_equal(np.asarray(images.to_plain(few)), expected)
    np.testing.assert_array_equal(images.decode_indices(TGA_OF_ALPHA, "map.tga"), [[0, 1]])


def test_pixels_of_a_png_that_are_not_those_of_their_checksum():
    """As after a download that stopped and left zeros; Pillow shows whatever they unpack to."""
    rows = RNG.integers(0, 256, (64, 97), dtype=np.uint8)
    rows[:, 0] = 0  # the filter of a row: none
    content = png(96, 64, 8, 0, rows.tobytes())
    np.testing.assert_array_equal(np.asarray(images.decode(content, "whole")), rows[:, 1:])
    place = content.index(b"IDAT") - 4
    zeros = content[:3000] + bytes(1000) + content[4000:]
    for damaged in (zeros, content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]):
        with pytest.raises(DataError, match=f"x.png: .* at byte {place} are not those of their"):
            images.decode(damaged, "x.png")
    cut = content[:-1]  # every pixel is there, and what makes sure of it
    np.testing.assert_array_equal(np.asarray(images.decode(cut, "cut")), rows[:, 1:])


def tiff_pages(order: str, photometric: int, bits: list[int], pixels: bytes, size: int) -> bytes:
    """An uncompressed TIFF of one row."""
    values = struct.pack(f"{order}{len(bits)}H", *bits)
    entries = [(256, 3, 1, size), (257, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, photometric)]
    entries += [(273, 4, 1, 200), (277, 3, 1, len(bits)), (278, 3, 1, 1), (279, 4, 1, len(pixels))]
    made = [struct.pack(f"{order}HHI", tag, kind, n) + (
        struct.pack(f"{order}I" if kind == 4 else f"{order}HH", *((v,) if kind == 4 else (v, 0)))
    ) for tag, kind, n, v in entries]  # fmt: skip
    where = values.ljust(4, b"\0") if len(bits) == 1 else struct.pack(f"{order}I", 180)
    made.insert(2, struct.pack(f"{order}HHI", 258, 3, len(bits)) + where)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = head + struct.pack(f"{order}H", len(made)) + b"".join(made) + bytes(4)
    return body.ljust(180, b"\0") + values.ljust(20, b"\0") + pixels


@pytest.mark.parametrize("order", "<>")
def test_16_bits_of_tiff(order):
    colour = tiff_pages(order, 2, [16] * 3, struct.pack(f"{order}9H", *WIDE), 3)
    expected = [[[0] * 3, [255, 128, 1], [156, 0, 1]]]
    np.testing.assert_array_equal(np.asarray(images.decode(colour, "colour")), expected)
    packed = encoded(Image.open(io.BytesIO(colour)), "TIFF")  # 8 bits, for comparison
    assert np.asarray(images.decode(packed, "8 bits"))[0, 2].tolist() == [156, 0, 0]
    grey = struct.pack(f"{order}3H", 0, 32768, 65535)
    found = images.decode(tiff_pages(order, 1, [16], grey, 3), "grey")
    np.testing.assert_array_equal(np.asarray(found), [[0, 128, 255]])


def test_white_may_be_0_and_12_bits_end_at_4095():
    grey = tiff_pages("<", 0, [16], struct.pack("<3H", 0, 32768, 65535), 3)
    np.testing.assert_array_equal(np.asarray(images.decode(grey, "white is 0")), [[255, 127, 0]])
    twelve = tiff_pages("<", 1, [12], bytes([0xFF, 0xF0, 0x00]), 2)  # 4095, 0
    np.testing.assert_array_equal(np.asarray(images.decode(twelve, "12 bits")), [[255, 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_channels_one_after_the_other(bits):
    """Pillow reads those of 16 bits as if they had 8."""
    planes = np.array([[1, 2], [3, 4], [5, 6]], ">u2" if bits == 16 else "u1")
    content = tiff_pages(">", 2, [bits] * 3, planes.tobytes(), 2)
    count, size = planes.shape[0], planes[0].nbytes
    entries = struct.pack(">HHII", 284, 3, 1, 2 << 16)
    head = struct.unpack_from(">H", content, 8)[0]
    content = content[:8] + struct.pack(">H", head + 1) + content[10:]
    content = content[: 10 + 12 * head] + entries + content[10 + 12 * head + 12 :]
    offsets = struct.pack(f">{count}I", *(200 + size * i for i in range(count)))
    content = content.replace(struct.pack(">HHII", 273, 4, 1, 200),
                              struct.pack(">HHII", 273, 4, count, 240))  # fmt: skip
    content = content.replace(struct.pack(">HHII", 279, 4, 1, size * count),
                              struct.pack(">HHII", 279, 4, count, 260))  # fmt: skip
    content = content.ljust(240, b"\0") + offsets
    content = content.ljust(260, b"\0") + struct.pack(f">{count}I", *[size] * count)
    if bits == 8:
        found = np.asarray(images.decode(content, "planes"))
        np.testing.assert_array_equal(found, planes.T[None])
        return
    with pytest.raises(DataError, match="channels of 16 bits one after the other"):
        images.decode(content, "planes")


# --- what libtiff prints --------------------------------------------------------------------------

DECODES = """
import io, os, sys, threading
from PIL import Image
from refimpl import predictors
from refimpl.conventions import DataError
from refimpl.data import images
content = sys.stdin.buffer.read()
def ours(decode):
    try: decode()
    except DataError: return
    raise SystemExit("it was decoded")
def theirs():
    os.write(2, b"theirs: ")
    try: Image.open(io.BytesIO(content)).load()
    except OSError: return
    raise SystemExit("it was decoded")
theirs()
ours(lambda: images.decode(content, "a.tif"))
ours(lambda: images.decode_indices(content, "a.tif"))
ours(lambda: images.to_plain(Image.open(io.BytesIO(content))))
theirs()
other = threading.Thread(target=ours, args=[lambda: images.decode(content, "a.tif")])
other.start(); other.join()
os.write(2, b"end")
"""


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate"])
def test_libtiff_is_silent_where_we_decode_and_nowhere_else(compression):
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60), np.uint8))
    content = bytearray(encoded(noise, "TIFF", compression=compression))
    content[8:40] = bytes(range(100, 132))
    done = subprocess.run(
        [sys.executable, "-c", DECODES], input=content, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    between, first, second = done.stderr.removesuffix(b"end").split(b"theirs: ")
    assert between == b""
    assert first == second  # what Pillow's users see is the same before and after


# --- PIL images of the user -----------------------------------------------------------------------


def test_a_truncated_pil_image_is_a_data_error():
    opened = Image.open(io.BytesIO(encoded(Image.new("RGB", (64, 64)), "BMP")[:-999]))
    with pytest.raises(DataError, match="image: the image is broken or truncated"):
        Preprocessing.plain((4, 4), 1).pixels(opened)
    ask = refimpl.classifier("didb_micro_mnist", backend="numpy")
    with pytest.raises(DataError, match="broken or truncated"):
        ask(Image.open(io.BytesIO(JPEG[:-20])))
    closed = Image.open(io.BytesIO(PNG))
    closed.fp.close()
    with pytest.raises(DataError):
        ask(closed)
