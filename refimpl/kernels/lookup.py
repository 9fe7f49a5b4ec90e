"""Products of real numbers with signs: four of them at a time, by looking up their sum.

    out[r, i] += sum_k d[r, k] * sign[k, i]

Of four numbers of a row there are sixteen sums with signs in front, which is what a register of
AVX-512 holds, and one of its instructions looks sixteen of them up: for sixteen columns, whose four
signs are the index. So an addition and a permutation do the work of four multiply-adds, and signs
take a bit each. With `BITS` in the place of `SIGNS` the factors are 1 and 0.

Every path of `popcount` gives the same sums, but where a CPU has no such instruction they are
looked up one by one, and BLAS is faster: see `pays`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.compile import inlined
from refimpl.kernels.popcount import WORD, Avx512, Path
from refimpl.kernels.vector import (
    LANES,
    WIDE,
    broadcast,
    compiled_as,
    constant,
    fma,
    load,
    pointer,
    splat,
    store,
)

FOUR = 4  # numbers whose signs are one index; and rows at a time
_IN_WORD = WORD // FOUR
# Factors (4, 16): bit j of k stands for number j in sum k.
BITS = (np.arange(LANES) >> np.arange(FOUR)[:, None] & 1).astype(np.float32)
SIGNS = 2 * BITS - 1

_FLOATS, _INTS = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(32)))


def pays(path: Path) -> bool:
    """Whether this way to the product takes less time than that of BLAS."""
    return WIDE and isinstance(path, Avx512)


@inlined
def tabulate(factors, d, at, step, row_step, groups, tables):
    """Sixteen sums of each group of four in FOUR rows: tables (FOUR, groups, 16).

    Number k of row r is at + r * row_step + k * step of d, flat.
    """
    first, second = load(factors, 0), load(factors, LANES)
    third, fourth = load(factors, 2 * LANES), load(factors, 3 * LANES)
    for r in range(FOUR):
        for g in range(groups):
            begin = at + r * row_step + FOUR * g * step
            total = broadcast(d, begin) * first
            total = fma(broadcast(d, begin + step), second, total)
            total = fma(broadcast(d, begin + 2 * step), third, total)
            total = fma(broadcast(d, begin + 3 * step), fourth, total)
            store(tables, (r * groups + g) * LANES, total)


def _look_up(columns: int):
    """The generator for FOUR rows times so many vectors of columns."""

    def typed(
        typing, path, tables, groups, indices, indices_at, words, onto, out, out_at, out_step
    ):
        index = types.intp
        result = types.none(
            path, tables, index, indices, index, index, types.boolean, out, index, index
        )

        def generate(context, builder, signature, values):
            _, tables, groups, indices, indices_at, words, onto, out, out_at, out_step = values
            integer = groups.type
            tables = pointer(context, builder, signature.args[1], tables, integer(0))
            indices = pointer(context, builder, signature.args[3], indices, indices_at)
            out = pointer(context, builder, signature.args[7], out, out_at)
            places = [
                _vector(builder, out, _sum(builder, builder.mul(out_step, integer(r)), c * LANES))
                for r in range(FOUR)
                for c in range(columns)
            ]
            sums = [cgutils.alloca_once(builder, _FLOATS) for _ in places]
            for total in sums:
                builder.store(ir.Constant(_FLOATS, [0.0] * LANES), total)
            with builder.if_then(onto):
                for total, place in zip(sums, places, strict=True):
                    builder.store(builder.load(place, align=4), total)
            found = [cgutils.alloca_once(builder, _INTS) for _ in range(columns)]
            with cgutils.for_range(builder, words) as word:
                for c, index in enumerate(found):
                    at = builder.add(builder.mul(words, integer(c)), word.index)
                    place = builder.gep(indices, [builder.mul(at, integer(LANES))])
                    place = builder.bitcast(place, _INTS.as_pointer())
                    builder.store(builder.load(place, align=4), index)
                first = builder.mul(word.index, integer(_IN_WORD))
                left = builder.sub(groups, first)
                whole = builder.icmp_signed(">=", left, integer(_IN_WORD))
                count = builder.select(whole, integer(_IN_WORD), left)
                with cgutils.for_range(builder, count) as loop:
                    group = builder.add(first, loop.index)
                    looked_up = [_looker(builder, path, builder.load(index)) for index in found]
                    for r in range(FOUR):
                        at = builder.add(builder.mul(groups, integer(r)), group)
                        table = builder.gep(tables, [builder.mul(at, integer(LANES))])
                        for c, term_of in enumerate(looked_up):
                            total = sums[r * columns + c]
                            sum_of_both = builder.fadd(builder.load(total), term_of(table))
                            builder.store(sum_of_both, total)
                    for index in found:
                        rest = builder.lshr(builder.load(index), constant(FOUR))
                        builder.store(rest, index)
            for total, place in zip(sums, places, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return result, generate

    return typed


def _sum(builder, value, number: int):
    return builder.add(value, ir.Constant(value.type, number))


def _vector(builder, base, at):
    return builder.bitcast(builder.gep(base, [at]), _FLOATS.as_pointer())


def _looker(builder, path, index):
    """table -> its numbers in the places that the four lowest bits of each lane of index name."""
    make = _by_sixteen if WIDE and path.instance_class is Avx512 else _one_by_one
    return make(builder, index)


def _by_sixteen(builder, index):
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _INTS])
    name = "llvm.x86.avx512.permvar.sf.512"
    permute = cgutils.get_or_insert_function(builder.module, kind, name)

    def look_up(table):
        table = builder.load(builder.bitcast(table, _FLOATS.as_pointer()), align=4)
        return builder.call(permute, [table, index])

    return look_up


def _one_by_one(builder, index):
    places = builder.and_(index, constant(LANES - 1))
    lanes = [ir.Constant(ir.IntType(32), lane) for lane in range(LANES)]
    places = [builder.extract_element(places, lane) for lane in lanes]

    def look_up(table):
        found = ir.Constant(_FLOATS, ir.Undefined)
        for lane, place in zip(lanes, places, strict=True):
            value = builder.load(builder.gep(table, [place]))
            found = builder.insert_element(found, value, lane)
        return found

    return look_up


def _function(columns: int):
    """out (FOUR, 16 * columns) = what the tables say, or out + it where it is to come `onto` it.

    indices (columns, words, 16) from indices_at on, as in `bits`: lane l of vector c is a column,
    four bits after the other its indices of the groups. Rows of out lie out_step apart.
    """

    @compiled_as(_look_up(columns))
    def block(path, tables, groups, indices, indices_at, words, onto, out, out_at, out_step):
        every = tables.reshape(-1)[: FOUR * groups * LANES].reshape(FOUR, groups, LANES)
        for c in range(columns):
            at = indices_at + c * words * LANES
            found = indices.reshape(-1)[at : at + words * LANES].reshape(words, LANES)
            for r in range(FOUR):
                place = out_at + r * out_step + c * LANES
                total = load(out, place) if onto else splat(np.float32(0))
                for g in range(groups):
                    shifted = found[g // _IN_WORD] >> np.uint32(FOUR * (g % _IN_WORD))
                    total = total + every[r, g][shifted & 15]
                store(out, place, total)

    return block


_look_up_2, _look_up_1 = _function(2), _function(1)


@inlined
def look_up(path, tables, groups, indices, columns, words, onto, out, out_at, out_step):
    """The product of FOUR rows, tabulated, with the signs of so many columns, a multiple of 16."""
    whole = columns // (2 * LANES) * 2 * LANES
    for c in range(0, whole, 2 * LANES):
        _look_up_2(path, tables, groups, indices, c * words, words, onto, out, out_at + c, out_step)
    if whole < columns:
        at = out_at + whole
        _look_up_1(path, tables, groups, indices, whole * words, words, onto, out, at, out_step)
