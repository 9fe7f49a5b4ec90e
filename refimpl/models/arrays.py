"""Arrays in a safetensors file: its header is read and checked, values when they are asked for.

So what a file claims is known before any of it is in memory. It is never mapped: a file that is
written anew meanwhile would end the process.

The file is 8 bytes, the length of the header (little-endian), the header, and the arrays. The
header is JSON, {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}; offsets
count from the end of the header. `__metadata__` is an object of strings.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.disk import unique_names

LONGEST = 100_000_000  # bytes of a header
# What NumPy calls a type, or how many bytes it has where NumPy has no name for it.
TYPES: dict[str, str | int] = {
    "BOOL": "?", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "i1", "I16": "<i2",
    "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


class InFile(NamedTuple):
    """An array of a file, which holds none of its values."""

    path: Path
    version: tuple[int, ...]  # of the file, when its header was read
    name: str
    type: str  # of TYPES
    shape: tuple[int, ...]
    start: int  # of its bytes in the file

    @property
    def dtype(self) -> Any:
        """NumPy's type; where it has none, the name that it has in the file."""
        kind = TYPES[self.type]
        return self.type if isinstance(kind, int) else np.dtype(kind)

    @property
    def nbytes(self) -> int:
        """The bytes that it has in the file."""
        return math.prod(self.shape) * _bytes(self.type)

    def read(self) -> bytearray:
        """Read its bytes; ValueError where the file has changed since, OSError from the disk."""
        data = bytearray(self.nbytes)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if _version(file) != self.version or file.readinto(data) != len(data):
                raise ValueError(f"{self.name}: the file was changed while it was read")
        return data

    def array(self) -> np.ndarray:
        """Read the array, which may be written to; errors as `read`, ValueError for other types."""
        if not isinstance(self.dtype, np.dtype):
            raise ValueError(f"{self.name}: dtype {self.type}, which NumPy does not have")
        return np.frombuffer(self.read(), self.dtype).reshape(self.shape)


def header(path: Path) -> tuple[dict[str, str], dict[str, InFile]]:
    """Read metadata, and the arrays by name in the order in which they lie in the file.

    ValueError says what is wrong with the file; OSError from the disk.
    """
    with open(path, "rb") as file:
        version, size = _version(file), os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST, size - 8):
            raise ValueError(f"a header of {length} bytes in {size}, {LONGEST} at the most")
        text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header is no JSON object")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=unique_names)
    except RecursionError:
        raise ValueError("its header is no JSON object") from None
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is no object of strings")
    entries = sorted((_entry(name, value) for name, value in found.items()), key=lambda e: e[0])
    arrays, end = {}, 0
    for (start, stop), name, kind, shape in entries:
        array = InFile(path, version, name, kind, shape, 8 + length + start)
        if start != end or stop - start != array.nbytes:
            raise ValueError(f"{name!r:.60}: lies at {start} to {stop}, expected {end} on")
        arrays[name], end = array, stop
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes, expected {8 + length + end}")
    return metadata, arrays


def _entry(name: str, value: Any) -> tuple[tuple[int, int], str, str, tuple[int, ...]]:
    """Offsets, name, type and shape of an array."""
    fields = value if isinstance(value, dict) else {}
    kind, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    whole = _whole(shape) and _whole(offsets)
    if not whole or len(offsets) != 2 or not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"{name!r:.60}: {value!s:.100}, expected dtype, shape and data_offsets")
    return (offsets[0], offsets[1]), name, kind, tuple(shape)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _bytes(kind: str) -> int:
    found = TYPES[kind]
    return found if isinstance(found, int) else np.dtype(found).itemsize


def _version(file: Any) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
