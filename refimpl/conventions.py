"""Letters, dtypes, sign and bit conventions, errors [SPEC 1]. Read this file first.

Letters used in every shape comment:

    B        images of a batch             H, W     rows and columns of an image
    N        tokens (class token first)    gh, gw   rows and columns of the patch grid
    C        channels of a token           heads, d attention heads, d = C / heads channels each
    I, O     inputs, outputs of a linear   K        length of a reduction
    p        side of a patch               r        ratio of the MLP
    M        side of a window              nW       windows of an image

Signs: ``sign(z) = +1 if z >= 0 else -1``, so that 0.0 and -0.0 both give +1: one bit has no
third value. A *binary* tensor's bit 1 means +1 and its bit 0 means -1; a *boolean* tensor's bit 1
means 1 and its bit 0 means 0. Rounding is half to even.

Dtypes: float32 or float64, one of them throughout. Mixing them is an error, never a cast.
Sums of floats accumulate in that same dtype, in NumPy's order: pairwise along the last axis, one
after the other along the leading axes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
IGNORED = 255  # in a label map: a pixel without a label [SPEC 10]


class RefimplError(Exception):
    """Base of every error that refimpl raises on purpose; its text is one line."""


class ShapeError(RefimplError, ValueError):
    """An array has a shape that the operation cannot take."""


class DtypeError(RefimplError, TypeError):
    """An array is not float32 or float64, or float types are mixed."""


class ConfigError(RefimplError, ValueError):
    """A field of a configuration or recipe is unknown, out of range, or contradicts another."""


class DataError(RefimplError, ValueError):
    """An image, a label or a file of a data set is missing, broken or not what was expected."""


class ModelFileError(RefimplError, ValueError):
    """A model's file or name is missing, broken or not what was expected."""


class GoldenFileError(RefimplError, ValueError):
    """A golden bundle or a candidate for comparison is missing, broken or not what was expected."""


class ClusterError(RefimplError, RuntimeError):
    """A scheduler or a worker of a cluster is missing, lost, or not what was expected."""


class NonFiniteError(RefimplError, FloatingPointError):
    """NaN or infinity entered a sign, a boolean or a softmax; ``layer`` is its dotted name."""

    def __init__(self, message: str, layer: str | None = None):
        super().__init__(f"{layer}: {message}" if layer else message)
        self.message = message
        self.layer = layer


def float_dtype(op: str, **arrays: np.ndarray | None) -> np.dtype:
    """The one float type of all arrays (None is passed over); otherwise DtypeError."""
    found = {name: getattr(a, "dtype", type(a)) for name, a in arrays.items() if a is not None}
    dtypes = set(found.values())
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    if isinstance(dtype, np.dtype) and dtype in FLOATS:
        return dtype
    listing = ", ".join(f"{name} {getattr(d, '__name__', d)}" for name, d in found.items())
    raise DtypeError(f"{op}: found {listing}; expected arrays of one type, float32 or float64")


def require_shape(op: str, name: str, array: np.ndarray, expected: tuple) -> None:
    """Compare a shape; in ``expected`` None stands for any size."""
    shape = np.shape(array)
    if len(shape) != len(expected) or any(
        e is not None and s != e for s, e in zip(shape, expected, strict=True)
    ):
        wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise ShapeError(f"{op}: {name} has shape {shape}; expected {wanted}")


def require_finite(op: str, name: str, array: np.ndarray) -> None:
    """Raise NonFiniteError with the first offending index if there is a NaN or an infinity."""
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise NonFiniteError(
            f"{op}: {name}{list(index)} is {array[index]}; expected a finite number"
        )


def require_choice(op: str, name: str, value: object, choices: tuple) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        wanted = ", ".join(repr(c) for c in choices)
        raise ConfigError(f"{op}: {name} is {value!r}; expected one of {wanted}")


def cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that at every moment the old one or the whole new one is there.

    Raises OSError, and leaves nothing behind, where the folder cannot be written or is full.
    """
    try:
        _replace(Path(path), data)
    except OSError as error:
        # a full disk names no file, and the name of the temporary one says little
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 is meant for secrets
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
