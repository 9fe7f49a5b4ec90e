"""The packed products: sixteen rows times sixteen lanes at a time, in registers [SPEC 1].

    binary . binary      K - 2 popcount(a ^ w)
    boolean . binary     2 popcount(a & v) - popcount(a)

Operands are packed as in `bits`: blocks of sixteen rows, `(blocks, words, 16)` uint32. The blocks
of one are the lanes of vectors, the rows of the other are broadcast one after the other, and
sixteen sums stay in registers until the last word. Padding is 0 in both operands and counts for
nothing.

A *path* is how a CPU counts ones: `avx512` has an instruction for it (VPOPCNTDQ), `avx2` and
`neon` count bytes and add these up every 31 words, `plain` leaves it to the compiler. Each path is
right on every CPU, and all give the same numbers. The environment variable REFIMPL_PATH takes one
by name instead of the one that suits the host. A path is a type of its own, so that what is
compiled, and cached, for one is never taken for another.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function

from refimpl.conventions import ConfigError
from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.vector import (
    INTS,
    LANES,
    WIDE,
    able,
    call,
    compiled_as,
    constant,
    load,
    pointer,
    popcount,
    splat,
    spread,
    store,
)

WORD = 32  # bits of a lane
CHUNK = 31  # words whose bytes can be added up: 31 * 8 < 256

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)


KEPT = 16 if WIDE else 4  # vectors that are kept in registers


class Avx512(NamedTuple):
    sums: int = 16


class Avx2(NamedTuple):
    sums: int = KEPT


class Neon(NamedTuple):
    sums: int = KEPT


class Plain(NamedTuple):
    sums: int = KEPT


Path = Avx512 | Avx2 | Neon | Plain
PATHS: dict[str, Path] = {"avx512": Avx512(), "avx2": Avx2(), "neon": Neon(), "plain": Plain()}


@functools.cache
def path() -> Path:
    """The way to count ones that suits this CPU, or the one that REFIMPL_PATH names."""
    forced = os.environ.get("REFIMPL_PATH")
    if forced:
        if forced not in PATHS:
            raise ConfigError(f"REFIMPL_PATH is {forced!r}; expected one of {', '.join(PATHS)}")
        return PATHS[forced]
    features = binding.get_host_cpu_features()
    if features.get("avx512vpopcntdq"):
        return PATHS["avx512"]
    if features.get("avx2"):
        return PATHS["avx2"]
    arm = binding.get_process_triple().startswith(("aarch64", "arm64"))  # the latter Apple's
    return PATHS["neon" if arm else "plain"]


# --- the register block, in LLVM ------------------------------------------------------------------


def _block(combine: str, rows: int, columns: int):
    """The generator of a block of `rows` rows times `columns` vectors of lanes."""
    sign = {"xor": "sub", "and": "add"}[combine]  # offset -/+ 2 ones

    def typed(typing, path, a, a_at, w, w_at, words, offset, out, out_at, stride):
        index = types.intp
        result = types.none(path, a, index, w, index, index, INTS, out, index, index)

        def generate(context, builder, signature, values):
            _, *operands, words, offset, out, out_at, stride = values
            a, w = _operands(context, builder, signature, operands)
            out = pointer(context, builder, signature.args[7], out, out_at)

            def write(r: int, c: int, ones):
                total = getattr(builder, sign)(offset, builder.shl(ones, constant(1)))
                at = builder.add(_times(builder, stride, r), ir.Constant(words.type, c * LANES))
                builder.store(total, _as(builder, builder.gep(out, [at]), _WORDS), align=4)

            _count(builder, path, combine, a, w, words, (rows, columns), write)
            return context.get_dummy_value()

        return result, generate

    return typed


def _ones_block(combine: str):
    """The generator of sixteen rows times one vector of lanes of which only the ones are wanted."""

    def typed(typing, path, a, a_at, w, w_at, words, out, out_at):
        index = types.intp
        result = types.none(path, a, index, w, index, index, out, index)

        def generate(context, builder, signature, values):
            _, *operands, words, out, out_at = values
            a, w = _operands(context, builder, signature, operands)
            out = pointer(context, builder, signature.args[6], out, out_at)

            def write(r: int, _: int, ones):
                place = builder.gep(out, [ir.Constant(words.type, r * LANES)])
                builder.store(ones, _as(builder, place, _WORDS), align=4)

            _count(builder, path, combine, a, w, words, (LANES, 1), write)
            return context.get_dummy_value()

        return result, generate

    return typed


def _operands(context, builder, signature, values):
    """Pointers to both, which come with their places."""
    a, a_at, w, w_at = values
    return (
        pointer(context, builder, signature.args[1], a, a_at),
        pointer(context, builder, signature.args[3], w, w_at),
    )


def _times(builder, x, number: int):
    return builder.mul(x, ir.Constant(x.type, number))


def _count(builder, path, combine: str, a, w, words, shape: tuple[int, int], write) -> None:
    """write(r, c, ones) for each row and vector of lanes, as many at once as the path keeps."""
    operation = {"xor": "xor", "and": "and_"}[combine]
    every, at_once = list(np.ndindex(*shape)), path.instance_class().sums
    for begin in range(0, len(every), at_once):
        places = every[begin : begin + at_once]

        def combined(word, places=places):
            """What the lanes of each sum and its row have in common, or not, in one word."""
            first = _times(builder, word, LANES)
            step = _times(builder, words, LANES)
            vectors = {
                c: _load(builder, a, builder.add(first, _times(builder, step, c)))
                for c in {c for _, c in places}
            }
            numbers = {
                r: builder.load(builder.gep(w, [builder.add(first, ir.Constant(words.type, r))]))
                for r in {r for r, _ in places}
            }
            for r, c in places:
                yield getattr(builder, operation)(vectors[c], spread(builder, numbers[r]))

        sums = [cgutils.alloca_once(builder, _WORDS) for _ in places]
        _counter(path)(builder, sums, combined, words)
        for (r, c), total in zip(places, sums, strict=True):
            write(r, c, builder.load(total))


def _counter(path: types.NamedTuple):
    return _count_bytes if path.instance_class in (Avx2, Neon) else _count_words


def _count_words(builder, sums, combined, words) -> None:
    """sums = the ones of all words."""
    zero, one = ir.Constant(words.type, 0), ir.Constant(words.type, 1)
    # the first word by itself: a third of the time of a short row goes into starting the sums
    for total, word in zip(sums, combined(zero), strict=True):
        builder.store(call(builder, "llvm.ctpop", word), total)
    with cgutils.for_range(builder, words, start=one) as loop:
        for total, word in zip(sums, combined(loop.index), strict=True):
            _accumulate(builder, total, call(builder, "llvm.ctpop", word))


def _count_bytes(builder, sums, combined, words) -> None:
    """The same by bytes, which are added up before one overflows."""
    zero, one, chunk = (ir.Constant(words.type, number) for number in (0, 1, CHUNK))
    ones = [cgutils.alloca_once(builder, _BYTES) for _ in sums]
    for total in sums:
        builder.store(constant(0), total)
    with cgutils.for_range_slice(builder, zero, words, chunk) as (first, _):
        for counter, word in zip(ones, combined(first), strict=True):
            builder.store(call(builder, "llvm.ctpop", builder.bitcast(word, _BYTES)), counter)
        left = builder.sub(words, first)
        short = builder.icmp_signed("<", left, chunk)
        with cgutils.for_range(builder, builder.select(short, left, chunk), start=one) as loop:
            word_of = combined(builder.add(first, loop.index))
            for counter, word in zip(ones, word_of, strict=True):
                bytes_of = call(builder, "llvm.ctpop", builder.bitcast(word, _BYTES))
                _accumulate(builder, counter, bytes_of)
        for total, counter in zip(sums, ones, strict=True):
            _accumulate(builder, total, _sum_of_bytes(builder, builder.load(counter)))


def _sum_of_bytes(builder, ones):
    """The four bytes of each lane, added."""
    if able("avx512bw"):
        return _by_pairs(builder, ones, ("avx512.pmaddubs.w.512", "avx512.pmaddw.d.512"))
    if able("avx2"):
        halves = [_by_pairs(builder, half, ("avx2.pmadd.ub.sw", "avx2.pmadd.wd"))
                  for half in _halves(builder, ones)]  # fmt: skip
        return builder.shuffle_vector(*halves, _places(range(LANES)))
    words, low = builder.bitcast(ones, _WORDS), constant(0x00FF00FF)
    pairs = builder.add(
        builder.and_(words, low), builder.and_(builder.lshr(words, constant(8)), low)
    )
    both = builder.add(pairs, builder.lshr(pairs, constant(16)))
    return builder.and_(both, constant(0xFFFF))


def _by_pairs(builder, ones, names):
    """Bytes times 1, added in pairs by one instruction, and the pairs by another."""
    for name, bits in zip(names, (16, 32), strict=True):
        one = ir.Constant(ones.type, [1] * ones.type.count)
        kind = ir.VectorType(ir.IntType(bits), ones.type.count // 2)
        function = ir.FunctionType(kind, [ones.type, ones.type])
        name = f"llvm.x86.{name}"
        ones = builder.call(get_or_insert_function(builder.module, function, name), [ones, one])
    return ones


def _halves(builder, vector):
    half = vector.type.count // 2
    for first in (0, half):
        places = _places(range(first, first + half))
        yield builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)


def _places(numbers):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), list(numbers))


def _accumulate(builder, total, term) -> None:
    builder.store(builder.add(builder.load(total), term), total)


def _load(builder, base, at):
    return builder.load(_as(builder, builder.gep(base, [at]), _WORDS), align=4)


def _as(builder, address, vector):
    return builder.bitcast(address, vector.as_pointer())


def _function(combine: str, rows: int, columns: int):
    """A block as a function: compiled, or where nothing is compiled in NumPy.

    out[r, c] = offset -/+ 2 ones of (a[c] ^/& w[r]) for each row r and vector of lanes c. Places
    are flat indices; `stride` lies between the rows of out.
    """

    @compiled_as(_block(combine, rows, columns))
    def block(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
        length = words * LANES
        for r in range(rows):
            row = w.reshape(-1)[w_at + r : w_at + r + length : LANES, None]
            for c in range(columns):
                lanes = a.reshape(-1)[a_at + c * length :][:length].reshape(words, LANES)
                ones = _ones(lanes ^ row if combine == "xor" else lanes & row)
                total = offset - 2 * ones if combine == "xor" else offset + 2 * ones
                store(out, out_at + r * stride + c * LANES, total)

    return block


def _ones_function(combine: str):
    """As `_function`, of sixteen rows and one vector of lanes: out[r] = ones of (a ^/& w[r])."""

    @compiled_as(_ones_block(combine))
    def block(path, a, a_at, w, w_at, words, out, out_at):
        length = words * LANES
        lanes = a.reshape(-1)[a_at:][:length].reshape(words, LANES)
        for r in range(LANES):
            row = w.reshape(-1)[w_at + r : w_at + r + length : LANES, None]
            ones = _ones(lanes ^ row if combine == "xor" else lanes & row)
            store(out, out_at + r * LANES, ones)

    return block


def _ones(words: np.ndarray) -> np.ndarray:
    """(words, 16) -> number of ones in each column, int32."""
    bits = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1)
    return bits.sum(axis=1, dtype=np.int32)


xor_8x2 = _function("xor", 8, 2)
xor_1x2 = _function("xor", 1, 2)
xor_8x1 = _function("xor", 8, 1)
xor_1x1 = _function("xor", 1, 1)
and_1x1 = _function("and", 1, 1)
ones_xor_16x1 = _ones_function("xor")
ones_and_16x1 = _ones_function("and")


# --- whole products -------------------------------------------------------------------------------


@jit
def binary_rows(path, a, w, length, out):
    """a (batch, blocks, words, 16), w likewise -> out (batch, rows of a, lanes of w) int32.

    out may have fewer rows than a's blocks; its columns are all lanes of w, 16 a block.
    """
    words, rows, stride = a.shape[2], out.shape[1], out.shape[2]
    step, blocks = words * LANES, w.shape[1]
    offset = splat(np.int32(length))
    for b in range(a.shape[0]):
        a_at, w_at, out_at = b * a.shape[1] * step, b * blocks * step, b * rows * stride
        for first in range(0, rows // 8 * 8, 8):
            row_at, place = a_at + first // LANES * step + first % LANES, out_at + first * stride
            for j in range(0, blocks // 2 * 2, 2):
                lanes_at, to = w_at + j * step, place + j * LANES
                xor_8x2(path, w, lanes_at, a, row_at, words, offset, out, to, stride)
            if blocks % 2:
                lanes_at, to = w_at + (blocks - 1) * step, place + (blocks - 1) * LANES
                xor_8x1(path, w, lanes_at, a, row_at, words, offset, out, to, stride)
        for row in range(rows // 8 * 8, rows):
            row_at, place = a_at + row // LANES * step + row % LANES, out_at + row * stride
            for j in range(0, blocks // 2 * 2, 2):
                lanes_at, to = w_at + j * step, place + j * LANES
                xor_1x2(path, w, lanes_at, a, row_at, words, offset, out, to, stride)
            if blocks % 2:
                lanes_at, to = w_at + (blocks - 1) * step, place + (blocks - 1) * LANES
                xor_1x1(path, w, lanes_at, a, row_at, words, offset, out, to, stride)


@inlined
def sixteen_rows(path, a, a_at, words, w, length, out):
    """A block of a, at its place, times w (blocks, words, 16) -> out (16, lanes of w) int32."""
    step, blocks, stride = words * LANES, w.shape[0], out.shape[1]
    offset = splat(np.int32(length))
    for first in (0, 8):
        for j in range(0, blocks // 2 * 2, 2):
            place = first * stride + j * LANES
            xor_8x2(path, w, j * step, a, a_at + first, words, offset, out, place, stride)
        if blocks % 2:
            j = blocks - 1
            place = first * stride + j * LANES
            xor_8x1(path, w, j * step, a, a_at + first, words, offset, out, place, stride)


@jit
def boolean_rows(path, a, v, out):
    """a (batch, blocks, words, 16) boolean, v likewise binary -> out as in `binary_rows`."""
    words, rows, stride = a.shape[2], out.shape[1], out.shape[2]
    step, blocks = words * LANES, v.shape[1]
    counts = np.empty(LANES, np.int32)
    for b in range(a.shape[0]):
        for row in range(rows):
            block_at = (b * a.shape[1] + row // LANES) * step
            if row % LANES == 0:
                ones = splat(np.int32(0))
                for word in range(words):
                    ones = ones + popcount(load(a, block_at + word * LANES))
                store(counts, 0, ones)
            offset = splat(np.int32(-counts[row % LANES]))
            for j in range(blocks):
                place = (b * rows + row) * stride + j * LANES
                v_at = (b * blocks + j) * step
                and_1x1(path, v, v_at, a, block_at + row % LANES, words, offset, out, place, stride)


# --- the roofline ---------------------------------------------------------------------------------


def _registers_only(typing, path, words, seed):
    by_bytes = _counter(path) is _count_bytes

    def generate(context, builder, signature, values):
        _, words, seed = values
        lane = spread(builder, seed)
        sums = [cgutils.alloca_once(builder, _WORDS) for _ in range(path.instance_class().sums)]
        for row, total in enumerate(sums):
            builder.store(builder.add(lane, constant(row)), total)

        def combined(word):
            # of the sum itself, so that nothing can be done beforehand; a sum of bytes stays as it
            # is for some words, and takes their number
            other = spread(builder, builder.trunc(word, seed.type)) if by_bytes else lane
            for total in sums:
                yield builder.xor(other, builder.load(total))

        _counter(path)(builder, sums, combined, words)
        result = builder.load(sums[0])
        for total in sums[1:]:
            result = builder.xor(result, builder.load(total))
        return builder.extract_element(result, ir.Constant(ir.IntType(32), 0))

    return types.int32(path, types.intp, types.int32), generate


@compiled_as(_registers_only)
def _block_in_registers(path, words, seed):
    return seed


@jit
def run_roofline(path, words, seed):
    """The instructions of a block, without memory, for so many words of all its sums.

    That is words * path.sums * 16 * 32 multiply-adds.
    """
    return _block_in_registers(path, words, seed)
