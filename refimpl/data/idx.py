"""One idx file (the format of MNIST) to an array, gzipped or not.

    bytes 0, 1    zero
    byte 2        type of an element: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64
    byte 3        number of dimensions
    4 bytes each  the dimensions, big-endian
    the rest      the elements, big-endian, last dimension fastest

Whether a file is gzipped is read from its first two bytes; its name says nothing.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refimpl.conventions import DataError, is_lfs_pointer, lfs_error

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_BYTES = 2**30  # of elements; keeps a forged header from filling the memory
MAX_DIMENSIONS = 32  # NumPy's limit before 2.0

_CHUNK = 2**20


def read(path: str | Path) -> np.ndarray:
    """The array in an idx file, in native byte order; DataError if it is not exactly one."""
    try:
        with open(path, "rb") as file:
            begin = file.read(128)
            if is_lfs_pointer(begin):
                raise DataError(lfs_error(path))
            zipped = begin[:2] == b"\x1f\x8b"
            file.seek(0)
            if not zipped:
                return _read(file, path)
            with gzip.open(file) as unzipped:
                return _read(unzipped, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip data is broken or truncated ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from None


def _read(file: BinaryIO, path: str | Path) -> np.ndarray:
    magic = _read_up_to(file, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not magic[3]:
        found = magic.hex(" ") or "nothing"
        raise DataError(f"{path}: not an idx file: starts with {found}, expected 00 00 TYPE NDIM")
    dtype, ndim = np.dtype(DTYPES[magic[2]]), magic[3]
    header = _read_up_to(file, 4 * ndim)
    if len(header) < 4 * ndim:
        raise DataError(f"{path}: ends inside the header, expected {ndim} dimensions")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    size = math.prod(shape) * dtype.itemsize
    # without its zeros, too: NumPy refuses a shape whose other sides are beyond its integers
    claimed = math.prod(max(side, 1) for side in shape) * dtype.itemsize
    if claimed > MAX_BYTES or ndim > MAX_DIMENSIONS:
        raise DataError(
            f"{path}: the header claims {ndim} dimensions and {claimed} bytes, "
            f"expected at most {MAX_DIMENSIONS} and {MAX_BYTES}"
        )
    content = _read_up_to(file, size + 1)
    if len(content) != size:
        found = f"{len(content)} bytes" if len(content) < size else "more"
        raise DataError(f"{path}: shape {shape} needs {size} bytes of elements, found {found}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_up_to(file: BinaryIO, count: int) -> bytearray:
    """At most `count` bytes, in pieces: a single read would allocate what a header claims."""
    content = bytearray()
    while len(content) < count:
        piece = file.read(min(_CHUNK, count - len(content)))
        if not piece:
            break
        content += piece
    return content
