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

import sys
import unicodedata
from collections.abc import Iterable

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
IGNORED = 255  # in a label map: a pixel without a label [SPEC 10]


_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories of what is not seen
_JOINERS = "\u200c\u200d"  # without which Persian names and some emoji are other ones


def shown(text: object) -> str:
    """A name of the user, or a text with names in it, as one line that no terminal obeys.

    Control characters, line breaks and marks that turn the direction become escapes, and so do the
    bytes of a file's name that are no UTF-8; all else stays. Once more it changes nothing.

    >>> shown("a\\nb.png"), shown("caf\\udce9"), shown("\\x1b[31mred"), shown("日本 thé.png")
    ('a\\\\nb.png', 'caf\\\\xe9', '\\\\x1b[31mred', '日本 thé.png')
    """
    text = str(text)
    return text if text.isascii() and text.isprintable() else "".join(map(_seen, text))


def _seen(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class RefimplError(Exception):
    """Base of every error that refimpl raises on purpose; its text is one line, see `shown`."""

    def __str__(self) -> str:
        return shown(super().__str__())


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


class OutputError(RefimplError, ValueError):
    """An output would destroy something, or cannot be written where it is to go."""


class ExportError(RefimplError, ValueError):
    """A network has an operation, or a value, that the format it is exported to cannot hold."""


class ClusterError(RefimplError, RuntimeError):
    """A scheduler or a worker of a cluster is missing, lost, or not what was expected."""


class NonFiniteError(RefimplError, FloatingPointError):
    """NaN or infinity entered a sign, a boolean or a softmax; ``layer`` is its dotted name."""

    def __init__(self, message: str, layer: str | None = None):
        super().__init__(f"{layer}: {message}" if layer else message)
        self.message = message
        self.layer = layer


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Find what a name was probably meant to be, to be put behind an error; "" where nothing is.

    >>> did_you_mean("didb-tiny", ["didb_tiny", "swin_tiny"])
    "; did you mean 'didb_tiny'?"
    """
    import difflib  # for an error only

    sane = isinstance(name, str) and len(name) < 100
    found = difflib.get_close_matches(name, list(known), n=1) if sane else []
    return f"; did you mean {found[0]!r}?" if found else ""


LFS = "a pointer of Git LFS, expected the file itself; `git lfs pull` fetches it"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file, of which `content` is the beginning, is what Git LFS keeps in its place."""
    return bytes(content[: len(_LFS_POINTER)]) == _LFS_POINTER


def lfs_error(name: object) -> str:
    """What to say of such a file."""
    return f"{name}: {LFS}"


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


def require_integers(op: str, name: str, array: np.ndarray) -> None:
    """Raise DtypeError unless ``array`` is an array of integers; a list is none."""
    dtype = getattr(array, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iu":
        found = type(array).__name__ if dtype is None else dtype
        raise DtypeError(f"{op}: {name} is {found}; expected an array of integers")


def require_finite(op: str, name: str, array: np.ndarray) -> None:
    """Raise NonFiniteError with the first offending index if there is a NaN or an infinity."""
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise NonFiniteError(
            f"{op}: {name}{list(index)} is {array[index]}; expected a finite number"
        )


def is_number(value: object) -> bool:
    """Say whether a value of JSON is a real number that a float holds: JSON has larger ones."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) <= sys.float_info.max


def require_choice(op: str, name: str, value: object, choices: tuple) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        wanted = ", ".join(repr(c) for c in choices)
        raise ConfigError(f"{op}: {name} is {value!r}; expected one of {wanted}")
