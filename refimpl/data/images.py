"""Image files to 8-bit grey or RGB pictures, the right way up.

Any format of Pillow is read, except EPS, which Pillow hands to Ghostscript, a program. Then

    EXIF orientation     applied
    several frames       the first one
    palette, CMYK, ...   to RGB
    transparency         laid on white, as a browser does
    16 bits a channel    value / 257, rounded: 0..65535 becomes 0..255
    32 bits              the same if all values are in 0..65535, otherwise refused
    floats               refused: nothing says which value is white

Whatever is wrong with a file is a DataError that names it.
"""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from refimpl.conventions import DataError

MAX_BYTES = 256 * 2**20  # of a file; the pixels are limited by PIL.Image.MAX_IMAGE_PIXELS

# What a folder's files are told apart by; an image that is named itself may have any suffix.
SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)

_TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")


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
    return _decode(content, name, to_plain)


def decode_indices(content: bytes, name: str) -> np.ndarray:
    """The numbers of an 8-bit grey or palette image as they are stored, uint8 (H, W).

    A palette's colours are passed over: its indices are the numbers. DataError as in `decode`, and
    for an image of any other kind.
    """
    return _decode(content, name, _indices)


def picture_size(content: bytes, name: str) -> tuple[int, int]:
    """(H, W) of what `decode` makes, as a rule without decoding it."""
    return _decode(content, name, _upright_size, pixels=False)


def _decode(
    content: bytes, name: str, read: Callable[[Image.Image, str], Any], pixels: bool = True
) -> Any:
    if not content:
        raise DataError(f"{name}: the file is empty, expected an image")
    if len(content) > MAX_BYTES:
        raise _too_large(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; the pixels are what we are after
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            if image.format == "EPS":
                raise DataError(f"{name}: EPS is a program for Ghostscript, expected pixels")
            if pixels:
                image.load()
            return read(image, name)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image in a format that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
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
    paths = [Path(folder, name) for name in shown if name.lower().endswith(SUFFIXES)]
    if not paths:
        raise DataError(f"{folder}: no images in it, expected files such as NAME.png or NAME.jpg")
    return paths


def to_plain(image: Image.Image, name: str = "image") -> Image.Image:
    """Any PIL image as mode L (grey) or RGB, 8 bits a channel, opaque and the right way up."""
    if min(image.size) == 0:
        raise DataError(f"{name}: the image has no pixels, its size is {image.size}")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError(f"{name}: the pixels are floats, expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return _from_wide(image, name)
    if image.mode == "La":  # Pillow knows no other way on from premultiplied grey
        image = image.convert("LA")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), picture).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _upright_size(image: Image.Image, name: str) -> tuple[int, int]:
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = to_plain(image, name)  # the size of a TIFF in its header is turned already
    return image.size[::-1]


def _indices(image: Image.Image, name: str) -> np.ndarray:
    if image.mode not in ("L", "P"):
        raise DataError(
            f"{name}: the image's mode is {image.mode}, expected one number a pixel: "
            "8-bit grey (L) or palette (P)"
        )
    return np.array(image)


def _too_large(name: str) -> DataError:
    return DataError(f"{name}: more than {MAX_BYTES >> 20} MB, expected an image file")


def _from_wide(image: Image.Image, name: str) -> Image.Image:
    """More than 8 bits a channel; Pillow's own conversion to L would clip at 255."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise DataError(f"{name}: pixels from {low} to {high}, expected 8 or 16 bits a channel")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))
