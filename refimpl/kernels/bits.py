"""Packing: signs to bits, sixteen rows side by side, and back [SPEC 1].

The private layout of the kernels: a matrix (rows, K) becomes (blocks, words, 16) uint32, where row
r is lane r % 16 of block r // 16 and its value k is bit k % 32 of word k // 32. Rows and values
that only fill up a block or a word are 0 bits.

    block 0, word 0:   row 0, k 0 … 31 | row 1, k 0 … 31 | … | row 15, k 0 … 31

>>> pack(np.array([[1.0, -1.0, 0.0]], np.float32)).words[0, 0, :2]      # + - +: bits 0 and 2
array([5, 0], dtype=uint32)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refimpl.conventions import DtypeError, ShapeError, require_finite
from refimpl.kernels import popcount
from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.popcount import WORD
from refimpl.kernels.vector import LANES, any_of, bits_of, load, ones_of, select, splat


class Packed(NamedTuple):
    """The bits of matrices (..., rows, K)."""

    words: np.ndarray  # (..., blocks, words, 16) uint32
    rows: int
    length: int  # K


def pack(x: np.ndarray, above: float | None = None) -> Packed:
    """The signs of float32 or float64 rows x (..., rows, K); any strides.

    A bit is x >= 0; with `above` it is x > above, as in a boolean tensor. NonFiniteError names the
    first NaN or infinity.
    """
    if x.dtype == np.float64:  # the vectors are float32
        require_finite("pack", "x", x)
        one = x >= 0 if above is None else x > above
        return pack(np.where(one, np.float32(1), np.float32(-1)))
    if x.dtype != np.float32:
        raise DtypeError(f"pack: x is {x.dtype}; expected float32 or float64")
    if x.ndim < 2 or x.size == 0:
        raise ShapeError(f"pack: x has shape {x.shape}; expected (..., rows, K), none of them 0")
    rows, length = x.shape[-2:]
    packed = np.zeros((*x.shape[:-2], -(-rows // LANES), -(-length // WORD), LANES), np.uint32)
    level = np.float32(0 if above is None else above)
    if not _pack(*_memory(x), level, above is not None, packed.reshape(-1)):
        require_finite("pack", "x", x)
    return Packed(packed, rows, length)


def _memory(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """x (..., rows, K) as all that lies between its first and its last value, the steps from
    matrix to matrix, head to head, row to row in it, and the shape (B, heads, rows, K)."""
    rows, length = x.shape[-2:]
    whole = all(stride % x.itemsize == 0 for stride in x.strides)  # not those of a record's field
    if x.ndim != 4 or x.strides[-1] != x.itemsize or min(x.strides) < 0 or not whole:
        x = np.ascontiguousarray(x).reshape(-1, 1, rows, length)
    steps = tuple(stride // x.itemsize for stride in x.strides)
    if x.flags.c_contiguous:
        return x.reshape(-1), steps, x.shape
    span = 1 + sum(step * (size - 1) for step, size in zip(steps, x.shape, strict=True))
    return np.lib.stride_tricks.as_strided(x, (span,), (x.itemsize,)), steps, x.shape


def unpack(packed: Packed) -> np.ndarray:
    """Bool (..., rows, K), the inverse of `pack`."""
    words, rows, length = packed
    lanes = np.ascontiguousarray(words.swapaxes(-1, -2)).astype("<u4")  # (..., blocks, 16, words)
    bits = np.unpackbits(lanes.view(np.uint8), axis=-1, count=length, bitorder="little")
    return bits.reshape(*words.shape[:-3], -1, length)[..., :rows, :].astype(bool)


def binary_product(a: Packed, w: Packed) -> np.ndarray:
    """Signs a (..., M, K) times signs w (..., N, K) -> int32 (..., M, N), exact."""
    _require_alike("binary_product", a, w)
    out = np.empty((_batch(a), a.rows, w.words.shape[-3] * LANES), np.int32)
    popcount.binary_rows(popcount.path(), _flat(a), _flat(w), a.length, out)
    return out[..., : w.rows].reshape(*a.words.shape[:-3], a.rows, w.rows)


def boolean_product(a: Packed, v: Packed) -> np.ndarray:
    """Booleans a (..., M, K) times signs v (..., N, K) -> int32 (..., M, N), exact."""
    _require_alike("boolean_product", a, v)
    out = np.empty((_batch(a), a.rows, v.words.shape[-3] * LANES), np.int32)
    popcount.boolean_rows(popcount.path(), _flat(a), _flat(v), out)
    return out[..., : v.rows].reshape(*a.words.shape[:-3], a.rows, v.rows)


def _require_alike(op: str, a: Packed, b: Packed) -> None:
    if a.length != b.length or a.words.shape[:-3] != b.words.shape[:-3]:
        found = [(*p.words.shape[:-3], p.rows, p.length) for p in (a, b)]
        raise ShapeError(f"{op}: shapes {found[0]} and {found[1]}; expected equal but for the rows")


def _batch(packed: Packed) -> int:
    return math.prod(packed.words.shape[:-3])


def _flat(packed: Packed) -> np.ndarray:
    """(batch, blocks, words, 16)."""
    return packed.words.reshape(-1, *packed.words.shape[-3:])


@jit
def _pack(x, steps, shape, threshold, strictly, packed):
    """x (B, heads, rows, K) as memory and steps -> packed, flat; False on NaN or infinity."""
    batch, heads, rows, length = shape
    words, rest = -(-length // WORD), length // WORD * WORD
    last = np.full(WORD, np.float32(-1e38))  # the rest of a row, filled up with 0 bits
    level, largest = splat(threshold), splat(np.int32(0))
    block_at = 0
    for b in range(batch):
        for h in range(heads):
            for r in range(rows):
                row = b * steps[0] + h * steps[1] + r * steps[2]
                at = block_at + r // LANES * words * LANES + r % LANES
                for first in range(row, row + rest, WORD):
                    low, high = load(x, first), load(x, first + LANES)
                    packed[at] = _word(low, high, level, strictly)
                    at += LANES
                    largest = larger(largest, exponent(low))
                    largest = larger(largest, exponent(high))
                if rest < length:
                    for k in range(rest, length):
                        last[k - rest] = x[row + k]
                    low, high = load(last, 0), load(last, LANES)
                    packed[at] = _word(low, high, level, strictly)
                    largest = larger(largest, exponent(low))
                    largest = larger(largest, exponent(high))
            block_at += -(-rows // LANES) * words * LANES
    return is_finite(largest)


@inlined
def _word(low, high, level, strictly):
    """The bits of two vectors of values."""
    if strictly:
        return ones_of(low > level) | ones_of(high > level) << np.uint32(LANES)
    return ones_of(low >= level) | ones_of(high >= level) << np.uint32(LANES)


@inlined
def larger(a, b):
    """The larger one of each lane."""
    return select(a > b, a, b)


@inlined
def exponent(x):
    """What is larger of a larger |x|, and largest of NaN and infinity."""
    return bits_of(x) & splat(np.int32(0x7FFFFFFF))


@inlined
def is_finite(largest):
    """Whether no NaN or infinity was among the numbers whose largest `exponent` this is."""
    return not any_of(largest >= splat(np.int32(0x7F800000)))
