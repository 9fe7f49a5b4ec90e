"""NumPy's .npy format, read strictly: these files come from other people's programs.

Never unpickled; the header's claim must be exactly the bytes that are there before anything of
that size is allocated; little-endian, since a port that dumps the other order has a bug to find.
"""

from __future__ import annotations

import io
import math
import os
import stat
import tokenize
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from refimpl.conventions import GoldenFileError, is_lfs_pointer, lfs_error

MAX_BYTES = 2**30  # of one array: far above any tap, far below what a hostile header claims
DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
BFLOAT16 = np.dtype("V2")  # as ml_dtypes saves it; NumPy has no such type
MAX_AXES = 32  # of every version of NumPy
HEADER_BYTES = 10_000  # NumPy's own bound for headers that are not trusted


class Header(NamedTuple):
    """What a file says about its array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool  # the first index runs fastest

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def type(self) -> str:
        return "bfloat16" if self.dtype == BFLOAT16 else self.dtype.name


def read(folder: Path, name: str) -> np.ndarray:
    """The array of the file `name` below a folder, read-only.

    GoldenFileError as of `open_inside` and `header`.
    """
    where = os.fspath(folder / name)
    with open_inside(folder, name) as file:
        found = header(file, os.fstat(file.fileno()).st_size, where)
        return values(file.read(found.bytes), found, where)


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Open an ordinary file below a folder; `name` has forward slashes.

    GoldenFileError where the name leaves the folder, also by way of a link, and where there is no
    such file or it is something else, such as a pipe or a pointer of Git LFS.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise GoldenFileError(f"{name}: leaves the folder {folder}; expected a file below it")
    try:
        real, expected = path.resolve(), folder.resolve() / name
        # not blocking: to open a pipe would wait for somebody who writes
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GoldenFileError(f"{path}: cannot be read: {reason}") from None
    if real != expected:
        os.close(handle)
        raise GoldenFileError(f"{path}: is a link to {real}; expected the file itself")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise GoldenFileError(f"{path}: is no ordinary file")
    file = open(handle, "rb")  # noqa: SIM115
    if is_lfs_pointer(file.peek(128)):
        file.close()
        raise GoldenFileError(lfs_error(path))
    return file


def header(file: BinaryIO, size: int, where: str) -> Header:
    """Read the header of a file of `size` bytes; afterwards `file` stands at the values.

    GoldenFileError, starting with `where`, for anything but a whole array of one of DTYPES.
    """
    start = io.BytesIO(file.read(HEADER_BYTES + 16))
    try:
        found = _parse(start)
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, SyntaxError, RecursionError,
        MemoryError, tokenize.TokenError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GoldenFileError(f"{where}: not a readable .npy file: {reason}") from None
    check(found, where)
    there = size - start.tell()
    if there != found.bytes:
        verb = "truncated" if there < found.bytes else "too long"
        raise GoldenFileError(
            f"{where}: {verb}: {there} bytes of values; "
            f"{found.dtype} {found.shape} has {found.bytes}"
        )
    file.seek(start.tell())
    return found


def check(found: Header, where: str) -> None:
    """GoldenFileError unless dtype and size are such that an array may have."""
    if found.dtype.hasobject:
        raise GoldenFileError(f"{where}: holds Python objects (a pickle); expected plain numbers")
    if found.dtype.str.startswith(">"):
        raise GoldenFileError(
            f"{where}: big-endian {found.dtype.name}; expected little-endian: "
            "write it in the other byte order"
        )
    if found.type not in DTYPES:
        raise GoldenFileError(f"{where}: dtype {found.dtype}; expected one of {', '.join(DTYPES)}")
    whole = all(type(n) is int and 0 <= n <= MAX_BYTES for n in found.shape)
    if len(found.shape) > MAX_AXES or not whole:
        raise GoldenFileError(f"{where}: shape {found.shape!s:.80}; expected sizes of at least 0")
    if found.bytes > MAX_BYTES:
        raise GoldenFileError(
            f"{where}: claims {found.dtype} {found.shape}, {found.bytes} bytes; "
            f"expected at most {MAX_BYTES}"
        )


def values(data: bytes, found: Header, where: str = "array") -> np.ndarray:
    """The bytes after a header -> the array, read-only; bfloat16 as float32.

    GoldenFileError, starting with `where`, where the file has been cut since its header was read.
    """
    if len(data) != found.bytes:
        raise GoldenFileError(
            f"{where}: truncated while it was read: {len(data)} of {found.bytes} bytes of values"
        )
    stored = np.dtype("<u2") if found.type == "bfloat16" else found.dtype
    array = np.frombuffer(data, stored).reshape(found.shape, order="F" if found.fortran else "C")
    return widen_bfloat16(array) if found.type == "bfloat16" else array


def widen_bfloat16(upper: np.ndarray) -> np.ndarray:
    """uint16, the upper half of a float32 -> float32, read-only."""
    array = np.asarray(upper.astype(np.uint32) << 16).view(np.float32)  # a scalar is one, too
    array.flags.writeable = False
    return array


def _parse(file: BinaryIO) -> Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, HEADER_BYTES)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, HEADER_BYTES)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the format; expected 1.0 or 2.0")
    return Header(dtype, shape, fortran)
