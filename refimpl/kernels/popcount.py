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
by name instead of the one that suits the host.
"""

from __future__ import annotations

import functools
import os

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from refimpl.conventions import ConfigError
from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.vector import (
    INTS,
    LANES,
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

PATHS = ("avx512", "avx2", "neon", "plain")
AVX512, AVX2, NEON, PLAIN = range(len(PATHS))
WORD = 32  # bits of a lane
CHUNK = 31  # words whose bytes can be added up: 31 * 8 < 256

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)


@functools.cache
def path() -> int:
    """Index in PATHS of the way to count ones that suits this CPU, or that REFIMPL_PATH names."""
    forced = os.environ.get("REFIMPL_PATH")
    if forced is not None:
        if forced not in PATHS:
            raise ConfigError(f"REFIMPL_PATH is {forced!r}; expected one of {', '.join(PATHS)}")
        return PATHS.index(forced)
    features = binding.get_host_cpu_features()
    if features.get("avx512vpopcntdq"):
        return AVX512
    if features.get("avx2"):
        return AVX2
    return NEON if "neon" in features or "aarch64" in binding.get_process_triple() else PLAIN


# --- the register block, in LLVM ------------------------------------------------------------------


def _block(combine: str, rows: int, columns: int, at_once: int, by_bytes: bool):
    """The generator of a block of `rows` rows times `columns` vectors of lanes.

    `at_once` sums are kept in registers.
    """
    operation = {"xor": "xor", "and": "and_"}[combine]
    sign = {"xor": "sub", "and": "add"}[combine]  # offset -/+ 2 count

    def typed(typing, a, a_at, w, w_at, words, offset, out, out_at, stride):
        index = types.intp
        result = types.none(a, index, w, index, index, INTS, out, index, index)

        def generate(context, builder, signature, values):
            a, a_at, w, w_at, words, offset, out, out_at, stride = values
            a = pointer(context, builder, signature.args[0], a, a_at)
            w = pointer(context, builder, signature.args[2], w, w_at)
            out = pointer(context, builder, signature.args[6], out, out_at)
            # offset + 2 x is x + offset / 2, doubled, and the odd bit again: one shift in all
            half = builder.ashr(offset, constant(1))
            odd = builder.shl(offset, constant(31))

            def times(x, number: int):
                return builder.mul(x, ir.Constant(x.type, number))

            def combined(word):
                """What the lanes of each sum and its row have in common, or not, in one word."""
                first = times(word, LANES)
                vectors = {
                    c: _load(builder, a, builder.add(first, times(times(words, LANES), c)))
                    for c in {c for _, c in places}
                }
                numbers = {
                    r: builder.load(
                        builder.gep(w, [builder.add(first, ir.Constant(words.type, r))])
                    )
                    for r in {r for r, _ in places}
                }
                for r, c in places:
                    yield getattr(builder, operation)(vectors[c], spread(builder, numbers[r]))

            every = [(r, c) for r in range(rows) for c in range(columns)]
            for begin in range(0, len(every), at_once):
                places = every[begin : begin + at_once]
                sums = [cgutils.alloca_once(builder, _WORDS) for _ in places]
                for total in sums:
                    builder.store(half, total)
                (_count_bytes if by_bytes else _count_words)(builder, sums, combined, sign, words)
                for (r, c), total in zip(places, sums, strict=True):
                    doubled = call(builder, "llvm.fshl", builder.load(total), odd, constant(1))
                    at = builder.add(times(stride, r), ir.Constant(words.type, c * LANES))
                    place = _as(builder, builder.gep(out, [at]), _WORDS)
                    builder.store(doubled, place, align=4)
            return context.get_dummy_value()

        return result, generate

    return typed


def _count_words(builder, sums, combined, sign: str, words) -> None:
    """sums -/+= the ones of every word."""
    zero, one = ir.Constant(words.type, 0), ir.Constant(words.type, 1)
    # the first word by itself: a third of the time of a short row goes into starting the sums
    for total, word in zip(sums, combined(zero), strict=True):
        _accumulate(builder, total, call(builder, "llvm.ctpop", word), sign)
    with cgutils.for_range(builder, words, start=one) as loop:
        for total, word in zip(sums, combined(loop.index), strict=True):
            _accumulate(builder, total, call(builder, "llvm.ctpop", word), sign)


def _count_bytes(builder, sums, combined, sign: str, words) -> None:
    """The same by bytes, which are added up before one overflows."""
    zero, chunk = ir.Constant(words.type, 0), ir.Constant(words.type, CHUNK)
    ones = [cgutils.alloca_once(builder, _BYTES) for _ in sums]
    with cgutils.for_range_slice(builder, zero, words, chunk) as (first, _):
        for counter in ones:
            builder.store(ir.Constant(_BYTES, [0] * _BYTES.count), counter)
        left = builder.sub(words, first)
        short = builder.icmp_signed("<", left, chunk)
        with cgutils.for_range(builder, builder.select(short, left, chunk)) as loop:
            word_of = combined(builder.add(first, loop.index))
            for counter, word in zip(ones, word_of, strict=True):
                bytes_of = call(builder, "llvm.ctpop", builder.bitcast(word, _BYTES))
                _accumulate(builder, counter, bytes_of, "add")
        for total, counter in zip(sums, ones, strict=True):
            _accumulate(builder, total, _sum_of_bytes(builder, builder.load(counter)), sign)


def _sum_of_bytes(builder, ones):
    """The four bytes of each lane, added."""
    words, low = builder.bitcast(ones, _WORDS), constant(0x00FF00FF)
    pairs = builder.add(
        builder.and_(words, low), builder.and_(builder.lshr(words, constant(8)), low)
    )
    both = builder.add(pairs, builder.lshr(pairs, constant(16)))
    return builder.and_(both, constant(0xFFFF))


def _accumulate(builder, total, term, sign: str) -> None:
    builder.store(getattr(builder, sign)(builder.load(total), term), total)


def _load(builder, base, at):
    return builder.load(_as(builder, builder.gep(base, [at]), _WORDS), align=4)


def _as(builder, address, vector):
    return builder.bitcast(address, vector.as_pointer())


def _named_block(combine: str, rows: int, columns: int, path: int):
    """The block of one path as a function: compiled, or where nothing is compiled in NumPy.

    out[r, c] = offset -/+ 2 ones of (a[c] ^/& w[r]) for each row r and vector of lanes c. Places
    are flat indices; `stride` lies between the rows of out.
    """
    at_once = min(rows * columns, 16 if path == AVX512 else 4)

    @compiled_as(_block(combine, rows, columns, at_once, by_bytes=path in (AVX2, NEON)))
    def block(a, a_at, w, w_at, words, offset, out, out_at, stride):
        length = words * LANES
        for r in range(rows):
            row = w.reshape(-1)[w_at + r : w_at + r + length : LANES, None]
            for c in range(columns):
                lanes = a.reshape(-1)[a_at + c * length :][:length].reshape(words, LANES)
                ones = _ones(lanes ^ row if combine == "xor" else lanes & row)
                total = offset - 2 * ones if combine == "xor" else offset + 2 * ones
                store(out, out_at + r * stride + c * LANES, total)

    return block


def _ones(words: np.ndarray) -> np.ndarray:
    """(words, 16) -> number of ones in each column, int32."""
    bits = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1)
    return bits.sum(axis=1, dtype=np.int32)


# One named function a path: Numba's cache could not tell them apart otherwise.
_xor_8x2_avx512 = _named_block("xor", 8, 2, AVX512)
_xor_8x2_avx2 = _named_block("xor", 8, 2, AVX2)
_xor_8x2_neon = _named_block("xor", 8, 2, NEON)
_xor_8x2_plain = _named_block("xor", 8, 2, PLAIN)
_xor_1x2_avx512 = _named_block("xor", 1, 2, AVX512)
_xor_1x2_avx2 = _named_block("xor", 1, 2, AVX2)
_xor_1x2_neon = _named_block("xor", 1, 2, NEON)
_xor_1x2_plain = _named_block("xor", 1, 2, PLAIN)
_xor_16x1_avx512 = _named_block("xor", 16, 1, AVX512)
_xor_16x1_avx2 = _named_block("xor", 16, 1, AVX2)
_xor_16x1_neon = _named_block("xor", 16, 1, NEON)
_xor_16x1_plain = _named_block("xor", 16, 1, PLAIN)
_xor_1x1_avx512 = _named_block("xor", 1, 1, AVX512)
_xor_1x1_avx2 = _named_block("xor", 1, 1, AVX2)
_xor_1x1_neon = _named_block("xor", 1, 1, NEON)
_xor_1x1_plain = _named_block("xor", 1, 1, PLAIN)
_and_16x1_avx512 = _named_block("and", 16, 1, AVX512)
_and_16x1_avx2 = _named_block("and", 16, 1, AVX2)
_and_16x1_neon = _named_block("and", 16, 1, NEON)
_and_16x1_plain = _named_block("and", 16, 1, PLAIN)
_and_1x1_avx512 = _named_block("and", 1, 1, AVX512)
_and_1x1_avx2 = _named_block("and", 1, 1, AVX2)
_and_1x1_neon = _named_block("and", 1, 1, NEON)
_and_1x1_plain = _named_block("and", 1, 1, PLAIN)


@inlined
def xor_8x2(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
    if path == AVX512:
        _xor_8x2_avx512(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == AVX2:
        _xor_8x2_avx2(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == NEON:
        _xor_8x2_neon(a, a_at, w, w_at, words, offset, out, out_at, stride)
    else:
        _xor_8x2_plain(a, a_at, w, w_at, words, offset, out, out_at, stride)


@inlined
def xor_1x2(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
    if path == AVX512:
        _xor_1x2_avx512(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == AVX2:
        _xor_1x2_avx2(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == NEON:
        _xor_1x2_neon(a, a_at, w, w_at, words, offset, out, out_at, stride)
    else:
        _xor_1x2_plain(a, a_at, w, w_at, words, offset, out, out_at, stride)


@inlined
def xor_16x1(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
    if path == AVX512:
        _xor_16x1_avx512(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == AVX2:
        _xor_16x1_avx2(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == NEON:
        _xor_16x1_neon(a, a_at, w, w_at, words, offset, out, out_at, stride)
    else:
        _xor_16x1_plain(a, a_at, w, w_at, words, offset, out, out_at, stride)


@inlined
def xor_1x1(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
    if path == AVX512:
        _xor_1x1_avx512(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == AVX2:
        _xor_1x1_avx2(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == NEON:
        _xor_1x1_neon(a, a_at, w, w_at, words, offset, out, out_at, stride)
    else:
        _xor_1x1_plain(a, a_at, w, w_at, words, offset, out, out_at, stride)


@inlined
def and_16x1(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
    if path == AVX512:
        _and_16x1_avx512(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == AVX2:
        _and_16x1_avx2(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == NEON:
        _and_16x1_neon(a, a_at, w, w_at, words, offset, out, out_at, stride)
    else:
        _and_16x1_plain(a, a_at, w, w_at, words, offset, out, out_at, stride)


@inlined
def and_1x1(path, a, a_at, w, w_at, words, offset, out, out_at, stride):
    if path == AVX512:
        _and_1x1_avx512(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == AVX2:
        _and_1x1_avx2(a, a_at, w, w_at, words, offset, out, out_at, stride)
    elif path == NEON:
        _and_1x1_neon(a, a_at, w, w_at, words, offset, out, out_at, stride)
    else:
        _and_1x1_plain(a, a_at, w, w_at, words, offset, out, out_at, stride)


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
            row_at = a_at + first // LANES * step + first % LANES
            place = out_at + first * stride
            for j in range(0, blocks // 2 * 2, 2):
                xor_8x2(
                    path,
                    w,
                    w_at + j * step,
                    a,
                    row_at,
                    words,
                    offset,
                    out,
                    place + j * LANES,
                    stride,
                )
        for first in range(rows // 8 * 8, rows):
            row_at = a_at + first // LANES * step + first % LANES
            place = out_at + first * stride
            for j in range(0, blocks // 2 * 2, 2):
                xor_1x2(
                    path,
                    w,
                    w_at + j * step,
                    a,
                    row_at,
                    words,
                    offset,
                    out,
                    place + j * LANES,
                    stride,
                )
        if blocks % 2:
            last_at, place = w_at + (blocks - 1) * step, out_at + (blocks - 1) * LANES
            for first in range(0, rows // LANES * LANES, LANES):
                row_at = a_at + first * words
                xor_16x1(
                    path, w, last_at, a, row_at, words, offset, out, place + first * stride, stride
                )
            for first in range(rows // LANES * LANES, rows):
                row_at = a_at + first // LANES * step + first % LANES
                xor_1x1(
                    path, w, last_at, a, row_at, words, offset, out, place + first * stride, stride
                )


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


def _registers_only(at_once: int, by_bytes: bool):
    """The generator of a block's instructions without a load or a store in their loop."""

    def typed(typing, words, seed):
        def generate(context, builder, signature, values):
            words, seed = values
            lane = spread(builder, seed)
            sums = [cgutils.alloca_once(builder, _WORDS) for _ in range(at_once)]
            for row, total in enumerate(sums):
                builder.store(builder.add(lane, constant(row)), total)

            def combined(word):
                # of the sum itself, so that nothing can be done beforehand; a sum of bytes stays
                # as it is for some words, and takes their number
                other = spread(builder, builder.trunc(word, seed.type)) if by_bytes else lane
                for total in sums:
                    yield builder.xor(other, builder.load(total))

            count = _count_bytes if by_bytes else _count_words
            count(builder, sums, combined, "add", words)
            result = builder.load(sums[0])
            for total in sums[1:]:
                result = builder.xor(result, builder.load(total))
            return builder.extract_element(result, ir.Constant(ir.IntType(32), 0))

        return types.int32(types.intp, types.int32), generate

    return typed


def roofline_sums(path: int) -> int:
    """Vectors of sums in a block: `run_roofline` does words * sums * 16 * 32 multiply-adds."""
    return 16 if path == AVX512 else 4


def _named_roofline(path: int):
    @compiled_as(_registers_only(roofline_sums(path), by_bytes=path in (AVX2, NEON)))
    def block(words, seed):
        return seed

    return block


_roofline_avx512 = _named_roofline(AVX512)
_roofline_avx2 = _named_roofline(AVX2)
_roofline_neon = _named_roofline(NEON)
_roofline_plain = _named_roofline(PLAIN)


@jit
def run_roofline(path, words, seed):
    """The instructions of `words` words of a block, without memory; see `roofline_sums`."""
    if path == AVX512:
        return _roofline_avx512(words, seed)
    if path == AVX2:
        return _roofline_avx2(words, seed)
    if path == NEON:
        return _roofline_neon(words, seed)
    return _roofline_plain(words, seed)
