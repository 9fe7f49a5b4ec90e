"""What an image file says beside its pixels: the one place that reads it.

Of all of it only the orientation is used. The rest may be damaged in any way: it never costs the
pixels, and what Pillow thinks of it never reaches the user.
"""

import contextlib
import ctypes
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image

# Orientation of EXIF -> what turns the picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_METADATA = {0xE1, 0xE2, 0xED, 0xFE}  # JPEG: EXIF and XMP, colour profiles, Photoshop, comments
_TIFF_PIXELS = {
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323),
    *(324, 325, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532),
}

# an application that configures no logging would see what Pillow logs on stderr
logging.getLogger("PIL").addHandler(logging.NullHandler())


def orientation(image: Image.Image) -> int:
    """Of EXIF, or else of XMP, 1 to 8; 1, which is upright, where nothing readable says so."""
    found = None
    with quiet(), contextlib.suppress(Exception):  # Pillow meets damage with nearly every one
        found = image.getexif().get(ExifTags.Base.Orientation)
    if found not in range(1, 9):
        found = _scanned(image.info.get("exif", b""))
    return found


def _scanned(exif: bytes) -> int:
    """The orientation in a block of EXIF whose other entries are damaged, where Pillow gives up."""
    block = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(block[:2], "<")
    with contextlib.suppress(struct.error):
        (place,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, values, found = struct.unpack_from(f"{order}HHIH", block, entry)
            if (tag, kind, values) == (ExifTags.Base.Orientation, 3, 1) and 1 <= found <= 8:
                return found
    return 1


def upright(image: Image.Image, turned: int) -> Image.Image:
    """A picture whose file says the orientation `turned`, the right way up."""
    return image.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else image


def reopened(content: bytes) -> Image.Image | None:
    """An image file once more, without what Pillow may have stumbled over beside the pixels.

    None where nothing can be left out of it. Errors are those of Pillow.
    """
    for bare in (_bare_jpeg, _bare_png, _bare_tiff, _bare_avif):
        with contextlib.suppress(struct.error, IndexError):
            found = bare(content)
            if found is not None:
                kept, exif = found
                image = Image.open(io.BytesIO(kept))
                image.info.update({"exif": exif} if exif else {})
                return image
    return None


def damaged_chunk(content: bytes) -> int | None:
    """Where in a PNG pixels begin whose checksum is another one: Pillow never compares it.

    None where there are none; a file that ends early is left to Pillow.
    """
    place = len(_PNG) if content.startswith(_PNG) else len(content)
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        if kind == b"IDAT" and end + 4 <= len(content):
            found = zlib.crc32(memoryview(content)[place + 4 : end])
            if struct.pack(">I", found) != content[end : end + 4]:
                return place
        place = end + 4
    return None


def _bare_jpeg(content: bytes) -> tuple[bytes, bytes] | None:
    """(file, EXIF) without the segments of metadata."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    kept, exif, place = [content[:2]], b"", 2
    while content[place] == 0xFF and 0xC0 <= content[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, place + 2)
        segment = content[place : place + 2 + length]
        if segment[1] not in _METADATA:
            kept.append(segment)
        elif segment[4:].startswith(_EXIF):
            exif = exif or segment[4:]
        place += len(segment)
    return b"".join(kept) + content[place:], exif


def _bare_png(content: bytes) -> tuple[bytes, bytes] | None:
    """(file, EXIF) with the chunks that pixels are made of: critical ones and transparency."""
    if not content.startswith(_PNG):
        return None
    kept, exif, place = [_PNG], b"", len(_PNG)
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + length + 12]
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(chunk)
        elif kind == b"eXIf" and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])):
            exif = _EXIF + chunk[8:-4]
        place += len(chunk)
    return b"".join(kept), exif


def _bare_tiff(content: bytes) -> tuple[bytes, bytes] | None:
    """(file, nothing) with the tags that pixels are made of, of the first page."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None:
        return None
    (place,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, place)
    first = place + 2
    tags = [content[first + 12 * i : first + 12 * (i + 1)] for i in range(count)]
    tags = [tag for tag in tags if struct.unpack_from(f"{order}H", tag)[0] in _TIFF_PIXELS]
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(tags) + bytes(4)  # no other page
    return content[:place] + directory + content[place + len(directory) :], b""


def _bare_avif(content: bytes) -> tuple[bytes, bytes] | None:
    """(file, nothing) in which the entry of EXIF is of another type; the way up is an entry too."""
    if content[4:12] not in (b"ftypavif", b"ftypavis"):
        return None
    return re.sub(rb"(infe.{8})Exif", rb"\1none", content, flags=re.DOTALL), b""


class _Decoding(threading.local):
    """The pattern of a filter of warnings: modules of Pillow, in a thread that is `quiet`."""

    depth = 0

    def match(self, module: str) -> bool:
        return self.depth > 0 and module.partition(".")[0] == "PIL"


_decoding = _Decoding()
_FILTER = ("ignore", None, Warning, _decoding, 0)
_lock = threading.Lock()
_threads = 0  # that are quiet


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that Pillow warns of inside is shown or raised, whatever other threads do.

    `warnings.catch_warnings` would change the warnings of the whole process, and two threads that
    leave it in another order than they came leave it changed. The filter here matches in threads
    that are inside and in no other, and is gone when the last one leaves.
    """
    global _threads
    with _lock:
        _threads += 1
        # somebody's later filter would come first
        if not warnings.filters or warnings.filters[0] is not _FILTER:
            warnings.filters.insert(0, _FILTER)
    _decoding.depth += 1
    try:
        yield
    finally:
        _decoding.depth -= 1
        with _lock:
            _threads -= 1
            while _threads == 0 and _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)


# What libtiff calls with its module's name, a format and a va_list, which is passed on as it comes.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_handlers: list[Any] = []  # ours, which libtiff may call as long as the process lives


def hush(image: Image.Image) -> None:
    """Before a TIFF is decoded: have libtiff print nothing in threads that are `quiet`.

    What it would print, Pillow raises as well. It has one function for the errors of all files, and
    Pillow lets nobody give it another for one file; so ours looks at the thread, and hands over to
    the one before wherever somebody else decodes. A libtiff that is not to be found in Pillow goes
    on printing.
    """
    with _lock:
        if image.format == "TIFF" and not _handlers:
            _handlers.append(None)
            with contextlib.suppress(OSError, AttributeError):
                _take_over(ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler)


def _take_over(set_handler: Any) -> None:
    before: list[Any] = []

    def handle(*said: int) -> None:
        if not _decoding.depth:
            for other in filter(None, before):
                other(*said)

    set_handler.argtypes, set_handler.restype = (_HANDLER,), _HANDLER
    _handlers.append(_HANDLER(handle))
    before.append(set_handler(_handlers[-1]))
