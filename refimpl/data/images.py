"""Image files to 8-bit grey or RGB pictures, the right way up.

Any format of Pillow is read, except EPS, which Pillow hands to Ghostscript, a program. Then

    EXIF orientation     applied; damaged metadata is passed over, see metadata.py
    several frames       the first one
    palette, CMYK, ...   to RGB
    transparency         laid on white, as a browser does: alpha, also of a palette's colours, or
                         PNG's transparent colour
    16 bits a channel    value / 257, rounded: 0..65535 becomes 0..255 (12 of a TIFF: likewise)
    32 bits              the same if all values are in 0..65535, otherwise refused
    floats               refused: nothing says which value is white

Of 16 bits in several channels Pillow keeps the high bytes. The low ones are read here of PNG and
TIFF; in rarer formats (SGI, JPEG 2000, premultiplied alpha) the high byte stands for the value.

Whatever is wrong with a file is a DataError that names it.
"""

import contextlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from refimpl.conventions import DataError, is_lfs_pointer, lfs_error
from refimpl.data import metadata

MAX_BYTES = 256 * 2**20  # of a file; the pixels are limited by PIL.Image.MAX_IMAGE_PIXELS

# What a folder's files are told apart by; an image that is named itself may have any suffix.
SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)

# What lies beside images and nobody takes for one.
_OTHERS = (
    *(".bz2", ".cfg", ".checkpoint", ".ckpt", ".csv", ".db", ".gz", ".html", ".ini", ".json"),
    *(".jsonl", ".log", ".mat", ".md", ".npy", ".npz", ".onnx", ".pdf", ".pkl", ".pt", ".pth"),
    *(".py", ".rst", ".safetensors", ".sh", ".tar", ".toml", ".tsv", ".txt", ".xml", ".xz"),
    *(".yaml", ".yml", ".zip"),
)

_TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")
# How Pillow calls the samples in a file -> by what it multiplies them when it unpacks them.
_FACTORS = {"L": 1, "L;2": 85, "L;4": 17, "1": 255, "P": 1, "P;1": 1, "P;2": 1, "P;4": 1}
_LOSSLESS = ("BMP", "DIB", "GIF", "PCX", "PNG", "PPM", "TGA", "TIFF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_WIDE = re.compile("(LA|RGB|RGBA|RGBX|CMYK);16[BLN]")
# Tags of TIFF, and values of them.
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
_WHITE_IS_ZERO, _APART = 0, 2


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file, as a PIL image of mode L or RGB; DataError if there is none."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise _too_large(str(path))
            content = file.read(MAX_BYTES + 1)  # of a pipe or device nobody knows the size
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        what = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot read the image: {what}") from None
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Image.Image:
    """Like open_image, for the bytes of a file; `name` is what an error calls them."""
    return _decode(content, name, _plain)


def decode_indices(content: bytes, name: str) -> np.ndarray:
    """The numbers of a grey or palette image as they are stored, uint8 (H, W).

    A palette's colours are passed over: its indices are the numbers. Numbers of 1, 2 or 4 bits are
    not spread over 0..255 as those of a picture are. They are turned upright, as `decode` does.
    DataError as in `decode`, and for an image of any other kind or in a format that loses some.
    """
    return _decode(content, name, _indices)


def picture_size(content: bytes, name: str) -> tuple[int, int]:
    """(H, W) of what `decode` makes, as a rule without decoding it."""
    return _decode(content, name, _upright_size)


def orientation_of(content: bytes, name: str) -> int:
    """Of a file, 1 to 8; see metadata.py. `decode` applies it."""
    return _decode(content, name, lambda image, _: metadata.orientation(image))


def to_plain(image: Image.Image, name: str = "image") -> Image.Image:
    """Any PIL image as mode L (grey) or RGB, 8 bits a channel, opaque and the right way up.

    One that Pillow has not loaded yet gives the same as `decode` of its file. DataError as there,
    and for anything else than a PIL image.
    """
    if not isinstance(image, Image.Image):
        raise DataError(f"{name}: found {type(image).__name__}, expected a PIL image")
    made_here = type(image) is Image.Image and image.mode in ("L", "RGB") and not image.info
    if made_here and min(image.size) > 0:
        return image
    with _told(name), metadata.quiet():
        return _plain(image, name)


def _decode(content: bytes, name: str, read: Callable[[Image.Image, str], Any]) -> Any:
    """`read` of the image, once more without the file's metadata where they are in the way."""
    if not content:
        raise DataError(f"{name}: the file is empty, expected an image")
    if len(content) > MAX_BYTES:
        raise _too_large(name)
    if is_lfs_pointer(content):
        raise DataError(lfs_error(name))
    if (place := metadata.damaged_chunk(content)) is not None:
        raise DataError(
            f"{name}: the image is broken: the pixels in it at byte {place} are not those of their "
            "checksum"
        )
    with _told(name), metadata.quiet():
        try:
            image = Image.open(io.BytesIO(content))
            return read(_allowed(image, name), name)
        except (DataError, MemoryError, Image.DecompressionBombError):
            raise
        except Exception:
            image = metadata.reopened(content)
            if image is None:
                raise
            return read(_allowed(image, name), name)


def _allowed(image: Image.Image, name: str) -> Image.Image:
    """An image that is opened and not decoded, where nothing speaks against decoding it."""
    if image.format == "EPS":
        raise DataError(f"{name}: EPS is a program for Ghostscript, expected pixels")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (1,))
    if tags.get(_PLANES) == _APART and len(bits) > 1 and max(bits) > 8:
        raise DataError(
            f"{name}: a TIFF with the channels of {max(bits)} bits one after the other, which "
            "Pillow misreads; expected them together, or of 8 bits"
        )
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:  # Pillow itself would warn up to twice as many
        raise DataError(f"{name}: refused, too many pixels: {pixels}, expected at most {most}")
    return image


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever Pillow raises inside becomes a DataError that names the image."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image in a format that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: refused, too many pixels: {error}") from None
    except Exception as error:  # decoders meet bad bytes with nearly every built-in exception
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{name}: the image is broken or truncated ({what})") from None


def in_folder(folder: str | Path) -> list[Path]:
    """The image files in a folder, by suffix and sorted by name; DataError if there is none."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot read the folder: {error.strerror}") from None
    shown = [name for name in names if not name.startswith(".")]
    named = [Path(folder, name) for name in shown if name.lower().endswith(SUFFIXES)]
    # a pipe would be waited for; a link to nothing is told when it is opened
    paths = [path for path in named if os.path.isfile(path) or not os.path.exists(path)]
    if not paths:
        raise DataError(f"{folder}: no images in it, expected files such as NAME.png or NAME.jpg")
    return paths


def odd_suffix(name: str) -> str | None:
    """The suffix of a file that may be an image and is not read; None for images and all others."""
    suffix = os.path.splitext(name)[1].lower()
    odd = suffix not in SUFFIXES and suffix not in _OTHERS and not name.startswith(".")
    return suffix if odd else None


def left_out_of(folder: str | Path) -> Counter[str]:
    """How many files of a folder have such a suffix, by suffix."""
    with os.scandir(folder) as entries:
        found = [odd_suffix(entry.name) for entry in entries if entry.is_file()]
    return Counter(suffix for suffix in found if suffix is not None)


def suffixes_of(counts: Counter[str]) -> str:
    """How many files and of which kinds, the most frequent first: 12 (.heic 10, .txt 2)."""
    kinds = [f"{suffix or 'no suffix'} {count:,}" for suffix, count in counts.most_common(3)]
    more = ", ..." if len(counts) > len(kinds) else ""
    return f"{counts.total():,} ({', '.join(kinds)}{more})"


def _plain(image: Image.Image, name: str) -> Image.Image:
    if min(image.size) == 0:
        raise DataError(f"{name}: the image has no pixels, its size is {image.size}")
    metadata.hush(image)
    samples = _samples(image)
    wide = _wide(image, samples)
    image.load()
    turned = metadata.orientation(image)  # of a TIFF only now: loading turns it
    clear = _colour_key(image, samples, wide)
    if image.mode == "F":
        raise DataError(f"{name}: the pixels are floats, expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = _from_deep(image, samples, name)
    elif wide is not None:
        image = _narrowed(wide, "LA" if wide.shape[-1] == 2 else image.mode)
    plain = _opaque(image, clear)
    plain.info = {}  # what was applied must not be applied once more
    return metadata.upright(plain, turned)


def _opaque(image: Image.Image, clear: np.ndarray | None) -> Image.Image:
    """Mode L or RGB; transparent pixels, and those of `clear` (H, W), are white."""
    if image.mode == "La":  # Pillow knows no other way on from premultiplied grey
        image = image.convert("LA")
    if clear is not None:
        pixels = np.array(image.convert("RGB" if image.mode == "RGB" else "L"))
        pixels[clear] = 255
        return Image.fromarray(pixels)
    if image.mode in _TRANSPARENT or "transparency" in image.info or _clear_palette(image):
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), picture).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _clear_palette(image: Image.Image) -> bool:
    """Whether the colours of a palette have an alpha each, as in TGA and after `quantize`."""
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _samples(image: Image.Image) -> str:
    """What Pillow calls the samples in the file of an image that is not loaded; else nothing."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    settings = tiles[0][3]
    name = settings[0] if isinstance(settings, tuple) and settings else settings
    return name if isinstance(name, str) else ""


def _wide(image: Image.Image, samples: str) -> np.ndarray | None:
    """uint16 (H, W, channels) of an image with 16 bits in several channels; None for others.

    The low bytes are what Pillow makes of the file when it takes the samples for those of the other
    byte order. Grey with alpha is taken for four channels of 8 bits.
    """
    if not _WIDE.fullmatch(samples):
        return None
    image.fp.seek(0)
    other = Image.open(io.BytesIO(image.fp.read()))
    other.seek(image.tell())
    little = samples[-1] == "L" or (samples[-1] == "N" and sys.byteorder == "little")
    twin = "RGBA" if samples.startswith("LA") else samples[:-1] + "LB"[little]
    other.tile = [_of_samples(tile, twin) for tile in other.tile]
    low = np.asarray(other)
    high, low = (low[..., ::2], low[..., 1::2]) if twin == "RGBA" else (np.asarray(image), low)
    values = high.astype(np.uint16)
    values <<= 8  # in place: of the largest image there is, a copy takes 700 MB
    values |= low
    return values


def _of_samples(tile: tuple, samples: str) -> tuple:
    """A part of Pillow's plan of a file with other samples: codec, box, offset, settings."""
    *where, settings = tile
    settings = (samples, *settings[1:]) if isinstance(settings, tuple) else samples
    named = hasattr(tile, "_fields")  # from Pillow 11 on
    return type(tile)(*where, settings) if named else (*where, settings)


def _colour_key(image: Image.Image, samples: str, wide: np.ndarray | None) -> np.ndarray | None:
    """Where a grey or RGB image has the one colour that its file calls transparent, bool (H, W).

    That colour is written in the file's own units, so it is looked for among the samples.
    """
    key, factor = image.info.get("transparency"), _FACTORS.get(samples, 1)
    if isinstance(key, int) and image.mode == "1":
        return np.asarray(image) == bool(key)
    if isinstance(key, int) and image.mode.startswith(("L", "I;16")) and len(image.getbands()) == 1:
        most = 255 // factor if image.mode == "L" else 65535
        return np.asarray(image) // factor == key & most  # bits above are to be passed over
    if isinstance(key, tuple) and len(key) == 3 and image.mode == "RGB":
        colours, most = (np.asarray(image), 255) if wide is None else (wide, 65535)
        return (colours == np.array(key) & most).all(axis=-1)
    return None


def _upright_size(image: Image.Image, name: str) -> tuple[int, int]:
    if metadata.orientation(image) != 1:
        image = _plain(image, name)  # the size of a TIFF in its header is turned already
    return image.size[::-1]


def _indices(image: Image.Image, name: str) -> np.ndarray:
    method = image.info.get("compression") if image.format == "TIFF" else None
    if image.format not in _LOSSLESS or method in _LOSSY_TIFF:
        raise DataError(
            f"{name}: the format is {image.format}, which may change numbers; expected one that "
            "keeps them, such as PNG"
        )
    if image.mode not in ("1", "L", "P"):
        raise DataError(
            f"{name}: the image's mode is {image.mode}, expected one number a pixel: "
            "grey (L) or palette (P) of at most 8 bits"
        )
    codec, _, _, settings = image.tile[0]
    samples = "P" if codec == "gif" else _samples(image)
    if samples not in _FACTORS or (codec.startswith("ppm") and settings[1] != 255):
        raise DataError(
            f"{name}: the numbers are stored on another scale ({codec} {settings}), expected "
            "black to be 0 and white to be all bits"
        )
    turned = metadata.orientation(image)
    metadata.hush(image)
    image.load()
    if image.format != "TIFF":  # loading has turned it
        image = metadata.upright(image, turned)
    if image.mode == "1":
        image = image.convert("L")
    return np.asarray(image) // _FACTORS[samples]


def _too_large(name: str) -> DataError:
    return DataError(f"{name}: more than {MAX_BYTES >> 20} MB, expected an image file")


def _from_deep(image: Image.Image, samples: str, name: str) -> Image.Image:
    """More than 8 bits in one channel; Pillow's own conversion to L would clip at 255."""
    values, most = np.asarray(image), 4095 if samples == "I;12" else 65535
    low, high = values.min(), values.max()
    if low < 0 or high > most:
        raise DataError(f"{name}: pixels from {low} to {high}, expected 8 or 16 bits a channel")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = most - values  # which Pillow does for 8 bits and fewer
    return _narrowed(values, "L", most)


def _narrowed(values: np.ndarray, mode: str, most: int = 65535) -> Image.Image:
    """Integers from 0 to `most`, (H, W) or (H, W, channels), as a picture of 8 bits a channel."""
    pixels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # floats of the whole would take eight times as much
        pixels[top : top + 256] = np.rint(values[top : top + 256] * (255 / most))
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
