"""What the twins share: rows of channels, and NumPy's order of additions.

A sum over channels is done as NumPy does it: eight running sums over at most 128 values, added
pairwise, and halves of what is longer. So a twin's floats are its original's, bit for bit, and
no sign of a float32 network depends on the backend.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.conventions import FLOATS
from refimpl.kernels.compile import jit
from refimpl.kernels.vector import compiled_as, pointer

EIGHT = 8
_LONGEST = 128  # of the sums that are not halved
_ADD = 0  # in the place of a length: add the last two sums
_DEPTH = 128


def fits(x: np.ndarray, *others: tuple[np.ndarray, tuple[int, ...]]) -> bool:
    """Whether a kernel takes x and the others, each given with the shape it must have.

    If not, the original op does the work, or says what is wrong.
    """
    return (
        isinstance(x, np.ndarray)
        and x.dtype in FLOATS
        and x.size > 0
        and all(
            isinstance(other, np.ndarray) and other.dtype == x.dtype and other.shape == shape
            for other, shape in others
        )
    )


def matrix(x: np.ndarray) -> np.ndarray:
    """x (..., C) as rows (R, C) that lie side by side: a view where they do already."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def flat(*arrays: np.ndarray) -> list[np.ndarray] | None:
    """Arrays of equal shape and order of axes in memory as views (size,); None if they differ."""
    order = np.argsort([-stride for stride in arrays[0].strides], kind="stable")
    turned = [array.transpose(order) for array in arrays]
    if not all(array.flags.c_contiguous for array in turned):
        return None
    return [array.reshape(-1) for array in turned]


@jit
def pairwise_sum(array, first, count):
    """Sum of neighbours in a C-contiguous array (size,), at least one, in NumPy's order."""
    if count <= _LONGEST:
        return _short_sum(array, first, count)
    # a stack instead of recursion, which Numba cannot load from its cache
    todo, sums = np.empty(_DEPTH, np.int64), np.empty(_DEPTH, array.dtype)
    todo[0], waiting, ready = count, 1, 0
    while waiting > 0:
        waiting -= 1
        length = todo[waiting]
        if length == _ADD:
            ready -= 1
            sums[ready - 1] += sums[ready]
        elif length <= _LONGEST:
            sums[ready] = _short_sum(array, first, length)
            first += length
            ready += 1
        else:
            half = length // 2 // EIGHT * EIGHT
            todo[waiting], todo[waiting + 1], todo[waiting + 2] = _ADD, length - half, half
            waiting += 3
    return sums[0]


@jit
def _short_sum(array, first, count):
    if count < EIGHT:
        total = array[first]
        for i in range(first + 1, first + count):
            total += array[i]
        return total
    eights = count // EIGHT
    total = _sum_of_eights(array, first, eights)
    for i in range(first + eights * EIGHT, first + count):
        total += array[i]
    return total


def _eight_sums(typing, array, first, eights):
    """LLVM's eight running sums in one register, added pairwise at the end."""
    elements = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
    element, size = elements[array.dtype], array.dtype.bitwidth // 8

    def generate(context, builder, signature, values):
        array, first, eights = values
        kind = ir.VectorType(element, EIGHT)
        start = pointer(context, builder, signature.args[0], array, first)
        start = builder.bitcast(start, kind.as_pointer())
        sums = cgutils.alloca_once(builder, kind)
        builder.store(builder.load(start, align=size), sums)
        with cgutils.for_range(builder, eights, start=eights.type(1)) as loop:
            terms = builder.load(builder.gep(start, [loop.index]), align=size)
            builder.store(builder.fadd(builder.load(sums), terms), sums)
        total = builder.load(sums)
        while total.type.count > 1:
            half = total.type.count // 2
            even, odd = (
                builder.shuffle_vector(
                    total,
                    ir.Constant(total.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(one, 2 * half, 2))),
                )
                for one in (0, 1)
            )
            total = builder.fadd(even, odd)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return array.dtype(array, types.intp, types.intp), generate


@compiled_as(_eight_sums)
def _sum_of_eights(array, first, eights):
    sums = array[first : first + EIGHT].copy()
    for i in range(first + EIGHT, first + eights * EIGHT, EIGHT):
        sums += array[i : i + EIGHT]
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]
