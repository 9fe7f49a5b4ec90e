"""What the twins share: rows of channels, and NumPy's order of additions.

A sum over channels is done as NumPy does it: eight running sums over at most 128 values, added
pairwise, and halves of what is longer. So a twin's floats are its original's, bit for bit, and
no sign of a float32 network depends on the backend.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.conventions import FLOATS
from refimpl.kernels.compile import inlined, jit
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


def plain(x: np.ndarray) -> np.ndarray:
    """Give x as vectors are loaded from it: in one piece, aligned, writable; itself where it is."""
    return x if x.flags.carray else np.array(x, order="C")


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
        return _added_pairwise(builder, builder.load(sums))

    return array.dtype(array, types.intp, types.intp), generate


def _added_pairwise(builder, total):
    """One number of a vector, neighbours first."""
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


@compiled_as(_eight_sums)
def _sum_of_eights(array, first, eights):
    sums = array[first : first + EIGHT].copy()
    for i in range(first + EIGHT, first + eights * EIGHT, EIGHT):
        sums += array[i : i + EIGHT]
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]


# --- several rows at once -------------------------------------------------------------------------

ROWS = 8  # rows whose sums are made side by side: one sum waits for each of its additions


@functools.cache
def order(count: int) -> np.ndarray:
    """How `sums` adds up a row of so many values: lengths, and _ADD.

    >>> order(320).tolist()
    [80, 80, 0, 80, 80, 0, 0]
    """
    if count <= _LONGEST:
        return np.array([count])
    half = count // 2 // EIGHT * EIGHT
    return np.concatenate([order(half), order(count - half), [_ADD]])


def room(count: int) -> int:
    """Sums that `sums` has open at a time, as many as its array `open_sums` must hold."""
    return ROWS * (1 + len(order(count)))


@inlined
def sums(x, at, stride, means, squared, order, open_sums):
    """open_sums[:ROWS] = sum of each row of x, from `at` on, in NumPy's order; see `order`.

    squared: the sum of (x - mean)^2 instead, of its mean in means (ROWS,).
    """
    ready = 0
    for count in order:
        if count == _ADD:
            ready -= 1
            for r in range((ready - 1) * ROWS, ready * ROWS):
                open_sums[r] += open_sums[r + ROWS]
            continue
        _sums_of_part(x, at, stride, count, means, squared, open_sums, ready * ROWS)
        at += count
        ready += 1


@inlined
def _sums_of_part(x, at, stride, count, means, squared, out, out_at):
    """Of so many neighbours, as in `_short_sum`."""
    eights = count // EIGHT
    if squared and eights > 0:
        _squares_of_eights(x, at, stride, eights, means, out, out_at)
    elif eights > 0:
        _sums_of_eights_of_rows(x, at, stride, eights, out, out_at)
    values = x.reshape(-1)
    for r in range(ROWS):
        mean = means[r] if squared else x.dtype.type(0)
        for i in range(eights * EIGHT, count):
            term = values[at + r * stride + i] - mean
            term = term * term if squared else term
            out[out_at + r] = out[out_at + r] + term if i > 0 else term


def _sums_of_rows(typing, x, first, length, eights, out, out_at):
    index = types.intp

    def generate(context, builder, signature, values):
        *row_values, out, out_at = values
        out = pointer(context, builder, signature.args[4], out, out_at)
        rows = _rows(context, builder, signature, row_values)
        _add_up(builder, rows, row_values[-1], out, lambda r, term: term)
        return context.get_dummy_value()

    return types.none(x, index, index, index, out, index), generate


def _squares_of_rows(typing, x, first, length, eights, means, out, out_at):
    index = types.intp

    def generate(context, builder, signature, values):
        *row_values, means, out, out_at = values
        out = pointer(context, builder, signature.args[5], out, out_at)
        rows, levels = _rows(context, builder, signature, row_values), []
        for r in range(ROWS):
            mean = pointer(context, builder, signature.args[4], means, out_at.type(r))
            levels.append(_eight_times(builder, builder.load(mean)))

        def square(r, term):
            deviation = builder.fsub(term, levels[r])
            return builder.fmul(deviation, deviation)

        _add_up(builder, rows, row_values[-1], out, square)
        return context.get_dummy_value()

    return types.none(x, index, index, index, means, out, index), generate


def _rows(context, builder, signature, values):
    """Where each row begins, as a pointer to eights."""
    x, first, length, _ = values
    kind = ir.VectorType(ir.FloatType(), EIGHT)
    places = [builder.add(first, builder.mul(length, length.type(r))) for r in range(ROWS)]
    rows = [pointer(context, builder, signature.args[0], x, place) for place in places]
    return [builder.bitcast(row, kind.as_pointer()) for row in rows]


def _add_up(builder, rows, eights, out, term_of) -> None:
    """Running sums of ROWS rows, each as in `_eight_sums`."""

    def terms(at):
        for r, row in enumerate(rows):
            yield term_of(r, builder.load(builder.gep(row, [at]), align=4))

    totals = [cgutils.alloca_once(builder, row.type.pointee) for row in rows]
    for total, term in zip(totals, terms(eights.type(0)), strict=True):
        builder.store(term, total)
    with cgutils.for_range(builder, eights, start=eights.type(1)) as loop:
        for total, term in zip(totals, terms(loop.index), strict=True):
            builder.store(builder.fadd(builder.load(total), term), total)
    for r, total in enumerate(totals):
        place = builder.gep(out, [eights.type(r)])
        builder.store(_added_pairwise(builder, builder.load(total)), place)


def _eight_times(builder, value):
    undefined = ir.Constant(ir.VectorType(value.type, EIGHT), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), EIGHT), [0] * EIGHT)
    return builder.shuffle_vector(first, undefined, lanes)


@compiled_as(_sums_of_rows)
def _sums_of_eights_of_rows(x, first, length, eights, out, out_at):
    for r in range(ROWS):
        out[out_at + r] = _sum_of_eights(x.reshape(-1), first + r * length, eights)


@compiled_as(_squares_of_rows)
def _squares_of_eights(x, first, length, eights, means, out, out_at):
    for r in range(ROWS):
        row = x.reshape(-1)[first + r * length :][: eights * EIGHT] - means[r]
        out[out_at + r] = _sum_of_eights(row * row, 0, eights)
