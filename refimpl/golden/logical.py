"""A candidate's array of a tap -> the logical one, whatever way its port stores bits [SPEC 8.2].

Bits may come as bool; as whole numbers 0 and 1, or -1 and +1 where the tensor is binary; or packed,
least significant bit first, in bytes or in little-endian words of 16, 32 or 64 bits, rows padded
with 0 to whole words or to 64 bits.
"""

from __future__ import annotations

import numpy as np

from refimpl.golden import record, store
from refimpl.golden.precision import UNITS
from refimpl.golden.record import Step
from refimpl.models.packing import WORD

LARGEST = 1e20  # memory that was never written to, read as floats, is beyond it
BITS = "uint8, packed, or bool"
HOW = (
    "write bool, 0 and 1 as uint8, or bits packed along the last axis, least significant first, as "
    "numpy.packbits(bit, axis=-1, bitorder='little') gives them"
)


class Tap:
    """One array of a candidate: logical, or with the reason why it cannot be judged."""

    def __init__(self, step: Step, array: np.ndarray, dtype: str | None = None):
        """step: the reference's; dtype: of its file, where NumPy has no such type."""
        self.step = step
        array = np.asarray(array)
        half = array.dtype.name == "float16"  # in which 1e20 does not exist
        self.array = array.astype(np.float32) if half else array  # logical, or as it came
        self.packed: np.ndarray | None = None  # uint8, as a bundle has it, of bits that were packed
        self.dtype = dtype or array.dtype.name
        self.reason = self._problem(step.value)

    @property
    def dumped(self) -> np.ndarray:
        """As it came, but words of bits as a bundle has them."""
        return self.array if self.packed is None else self.packed

    def _problem(self, golden: np.ndarray) -> str | None:
        wrong = wrong_shape(golden, self.array.shape, self.array.dtype)
        if wrong is not None:
            return wrong
        kind = record.kind_of(golden)
        if kind == "bit" and self.array.dtype.kind in "iu":
            return self._whole_numbers(golden.shape)
        fits = {
            "bit": self.array.dtype == bool,
            "int": self.array.dtype.kind in "iu",
            "real": self.array.dtype.kind == "f" and self.dtype in UNITS,
        }[kind]
        if not fits:
            wanted = {"bit": BITS, "int": "int32", "real": "float32 or float64"}[kind]
            how = f": {HOW}" if kind == "bit" else ""
            return f"dtype {self.dtype}; expected {wanted}{how}"
        return self._wild() if kind == "real" else None

    def _wild(self) -> str | None:
        """NaN, infinity, or a number that no port computes and no bound could be computed with."""
        if not np.isfinite(self.array).all():
            return f"NaN or infinity at {_first(~np.isfinite(self.array))}"
        too_large = np.abs(self.array) > LARGEST
        if too_large.any():
            return f"above {LARGEST:g} in magnitude at {_first(too_large)}"
        return None

    # --- bits as whole numbers --------------------------------------------------------------------

    def _whole_numbers(self, shape: tuple[int, ...]) -> str | None:
        data = self._as_bytes(shape)
        if data is None:
            return self._plain()
        if store.padding_is_clear(data, shape):
            return self._unpack(data, shape)
        # eight bits may lie in a row of eight bytes
        if self.array.shape == shape and self._plain() is None:
            return None
        self._unpack(data, shape)
        return "padding bits set"

    def _as_bytes(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Rows of words -> the bytes of a bundle; None where they have no such shape."""
        if self.array.shape not in _packed_shapes(shape, self.array.dtype):
            return None
        words = np.ascontiguousarray(self.array).astype(self.array.dtype.newbyteorder("<"))
        found = words.view(np.uint8)
        missing = store.packed_shape(shape)[-1] - found.shape[-1]
        return np.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, missing)])

    def _unpack(self, data: np.ndarray, shape: tuple[int, ...]) -> None:
        self.packed, self.array = data, store.unpack(data, shape)

    def _plain(self) -> str | None:
        """0 and 1, or -1 and +1."""
        found = set(np.unique(self.array).tolist())
        boolean = self.step.threshold != 0
        if found <= {0, 1} or (found <= {-1, 1} and not boolean):
            self.array = self.array > 0
            return None
        odd = found - {0, 1} if boolean else (found - {-1, 0, 1} or found)
        wanted = "0 and 1, its bits are no signs" if boolean else "0 and 1, or -1 and +1"
        listed = ", ".join(map(str, sorted(odd)[:3]))
        return f"{self.array.dtype} with {listed}; expected {wanted}: {HOW}"


def wrong_shape(golden: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Why an array of this shape and type cannot be the tap; None where it can.

    Of the header alone: nothing of the array need be read before.
    """
    if shape == golden.shape:
        return None
    if record.kind_of(golden) != "bit" or dtype.kind not in "iu":
        return f"shape {shape}; expected {golden.shape}"
    if shape in _packed_shapes(golden.shape, dtype):
        return None
    return (
        f"shape {shape}; expected {store.packed_shape(golden.shape)}, the bits of {golden.shape} "
        f"packed, or bool {golden.shape}: {HOW}"
    )


def _packed_shapes(shape: tuple[int, ...], dtype: np.dtype) -> list[tuple[int, ...]]:
    """Those of rows of bits in whole words of a type, or in as many as fill 64 bits."""
    width = 8 * dtype.itemsize
    return [
        (*shape[:-1], count)
        for count in (-(-shape[-1] // width), -(-shape[-1] // WORD) * WORD // width)
    ]


def _first(mask: np.ndarray) -> list[int]:
    return [int(i) for i in np.argwhere(mask)[0]]
