"""Twin of a whole unit: the binary projection P of [SPEC 5], `models.binary.projection`.

It is the one twin that is no operation of `refimpl.ops`: the interpreter runs it in the place of a
unit of nodes where no one listens. It takes what they take, in their order.

    P = RPReLU(LayerNorm(sign(x + move) W_b^T) + fit(x))

Forward and backward walk once over the rows, so what is between x and P never leaves the
first-level cache. In stage "full" the cache of a run holds x, its packed signs and two numbers a
row, and backward counts the bits again; values are those of the operations one by one, bit for bit.
Stage "activations" keeps the real product of signs and weights. Gradients are summed row by row.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.kernels import bits, lookup, popcount, rows
from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.lookup import FOUR, SIGNS, look_up, tabulate
from refimpl.kernels.popcount import WORD, sixteen_rows
from refimpl.kernels.rows import ROWS, sums
from refimpl.kernels.vector import (
    LANES,
    broadcast,
    load,
    load_as_floats,
    ones_of,
    quotient,
    select,
    splat,
    store,
    store_2_times,
    store_4_times,
    sum_of_lanes,
    sums_of_2,
    sums_of_4,
)


class Cache(NamedTuple):
    x: np.ndarray  # (B, N, I)
    move: np.ndarray
    given: list[np.ndarray]  # of the norm and RPReLU, see `_plain`
    per_token: bool
    linear: _Linear
    stats: np.ndarray  # (B * N, 2) mean and standard deviation of each row of the linear map
    ste: str


class _Full(NamedTuple):
    """Stage "full": signs times signs."""

    packed: bits.Packed  # signs of x + move
    weights: bits.Packed  # signs of Wc
    turned: np.ndarray  # those of its transpose (blocks of inputs, words of outputs, 16)
    scale: np.ndarray  # (O,)
    centred: np.ndarray  # (O, I) Wc

    def product(self) -> np.ndarray:
        """Before the scale, int32 (R, O)."""
        return bits.binary_product(self.packed, self.weights)

    def used(self) -> np.ndarray:
        """W_b (O, I)."""
        used = np.empty_like(self.centred)
        _scaled_signs(self.centred, self.scale, used)
        return used

    def weight_gradient(self, dused: np.ndarray) -> np.ndarray:
        """From that of W_b (O, I), which is overwritten."""
        inputs = dused.shape[1]
        room = np.empty(rows.room(inputs), dused.dtype)
        _weight_backward(self.centred, rows.order(inputs), room, dused)
        return dused


class _Activations(NamedTuple):
    """Stage "activations": signs times real weights."""

    weight: np.ndarray  # (O, I)
    result: np.ndarray  # (R, O)
    scale: np.ndarray  # (O,) of 1

    def product(self) -> np.ndarray:
        return self.result

    def used(self) -> np.ndarray:
        return self.weight

    def weight_gradient(self, dused: np.ndarray) -> np.ndarray:
        return dused


_Linear = _Full | _Activations


def forward(
    x: np.ndarray,
    move: np.ndarray,
    weight: np.ndarray,
    gain: np.ndarray,
    bias: np.ndarray,
    shift_in: np.ndarray,
    slope: np.ndarray,
    shift_out: np.ndarray,
    token_shift_in: np.ndarray | None = None,
    token_shift_out: np.ndarray | None = None,
    *,
    binarize: str,
    ste: str,
    eps: float,
) -> tuple[np.ndarray, Cache] | None:
    """x (B, N, I) -> P (B, N, O); None where the operations must do it, one by one.

    They must for float64, and where the channels are no vectors of sixteen; a warning says so once.
    gain and bias are LayerNorm's; shapes are those of [SPEC 6.4].
    """
    channel = gain, bias, shift_in, slope, shift_out
    token = token_shift_in, token_shift_out
    if x.dtype != np.float32:
        _say_once(f"of {x.dtype}; expected float32")
    elif len(weight) % LANES or x.shape[-1] % LANES:
        _say_once(f"where {LANES} does not divide the channels")
    if not _fits(x, move, weight, channel, token):
        return None
    if binarize not in ("full", "activations") or ste not in ops.sign.STES:
        return None
    batch, tokens, _ = x.shape
    x, move, weight = map(rows.plain, (x, move, weight))
    given = _plain(channel, token, tokens)
    if not np.isfinite(slope).all():  # the operations spread it
        return None
    y = np.empty((batch, tokens, len(weight)), x.dtype)
    stats = np.empty((batch * tokens, 2), x.dtype)
    linear = (_full if binarize == "full" else _activations)(
        rows.matrix(x), move, weight, x.dtype.type(eps), given, stats, rows.matrix(y)
    )
    if linear is None:
        return None
    per_token = token_shift_in is not None
    return y, Cache(x, move, given, per_token, linear, stats, ste)


@functools.cache
def _say_once(of_what: str) -> None:
    warnings.warn(
        f"kernels: there is no fused projection {of_what}; NumPy computes it, which takes longer",
        stacklevel=2,
    )


def _fits(x: np.ndarray, move: np.ndarray, weight: np.ndarray, channel, token) -> bool:
    if x.ndim != 3 or weight.ndim != 2:
        return False
    outputs, inputs = len(weight), x.shape[2]
    few, many = sorted((outputs, inputs))
    if x.dtype != np.float32 or few == 0 or few % LANES or many % few:
        return False
    return rows.fits(
        x,
        (weight, (outputs, inputs)),
        (move, (inputs,)),
        *((array, (outputs,)) for array in channel),
        *((array, x.shape[1:2]) for array in token if array is not None),
    )


def _full(x, move, weight, eps, given, stats, y) -> _Full | None:
    """Stage "full" of rows x (R, I) -> y (R, O); None where something is NaN or infinite."""
    (length, inputs), outputs = x.shape, len(weight)
    centred, scale = np.empty(weight.shape, x.dtype), np.empty(outputs, x.dtype)
    weights, turned = _room_of_bits(outputs, inputs), _room_of_bits(inputs, outputs)
    if not _binarize(
        np.ascontiguousarray(weight), rows.order(inputs), *_room_of_sums(inputs), centred, scale,
        weights, turned,
    ):  # fmt: skip
        return None
    words, product = _room_of_bits(length, inputs), np.empty((LANES, outputs), np.int32)
    found = _forward_of_signs(
        popcount.path(), x, move, weights, scale, eps, *given, rows.order(outputs),
        *_room_of_sums(outputs), _room_of_shortcut(inputs, outputs), product, words, stats, y,
    )  # fmt: skip
    if not found:
        return None
    packed, weights = bits.Packed(words, length, inputs), bits.Packed(weights, outputs, inputs)
    return _Full(packed, weights, turned, scale, centred)


def _room_of_bits(length: int, count: int) -> np.ndarray:
    """Of `bits.Packed` rows."""
    return np.zeros((-(-length // LANES), -(-count // WORD), LANES), np.uint32)


def _room_of_sums(count: int) -> tuple[np.ndarray, ...]:
    """ROWS rows of so many values, their means, and what `rows.sums` needs."""
    sizes = ROWS * count, ROWS, rows.room(count)
    return tuple(np.zeros(size, np.float32) for size in sizes)


def _room_of_shortcut(inputs: int, outputs: int) -> np.ndarray:
    return np.empty(min(inputs, outputs), np.float32)


def _activations(x, move, weight, eps, given, stats, y) -> _Activations | None:
    """Stage "activations", likewise."""
    signs = np.empty(x.shape, x.dtype)
    if not _signs(x, move, signs):
        return None
    linear = _Activations(weight, signs @ weight.T, np.ones(len(weight), weight.dtype))
    outputs, inputs = weight.shape
    _forward(
        x, linear.result, 0, len(x), 0, linear.scale, eps, *given, rows.order(outputs),
        *_room_of_sums(outputs), _room_of_shortcut(inputs, outputs), stats, y,
    )  # fmt: skip
    return linear


@jit
def _signs(x, move, signs):
    """Those of rows x (R, I) + move; False where a value is NaN or infinite."""
    length, inputs = x.shape
    zero, one, largest = splat(np.float32(0)), splat(np.float32(1)), splat(np.int32(0))
    for r in range(length):
        for i in range(0, inputs, LANES):
            z = load(x, r * inputs + i) + load(move, i)
            largest = bits.larger(largest, bits.exponent(z))
            store(signs, r * inputs + i, select(z >= zero, one, zero - one))
    return bits.is_finite(largest)


@jit
def _binarize(weight, order, sizes, means, open_sums, centred, scale, words, turned):
    """As `ops.weight_binarizer.binarize`, the signs packed; False where one is not finite."""
    (outputs, inputs), zero = weight.shape, splat(np.float32(0))
    count, largest = np.float32(inputs), splat(np.int32(0))
    places, lanes = words.reshape(-1), turned.reshape(-1)
    for first in range(0, outputs, ROWS):
        begin = first * inputs
        for i in range(0, ROWS * inputs, LANES):
            w = load(weight, begin + i)
            store(sizes, i, select(w > zero, w, zero - w))
        sums(sizes, 0, inputs, means, False, order, open_sums)
        for r in range(ROWS):
            scale[first + r] = open_sums[r] / count
        sums(weight, begin, inputs, means, False, order, open_sums)
        for r in range(ROWS):
            o, mean = first + r, splat(open_sums[r] / count)
            bit = splat(np.uint32(np.uint32(1) << np.uint32(o % WORD)))
            place = o // LANES * words.shape[1] * LANES + o % LANES
            for i in range(0, inputs, LANES):
                w = load(weight, o * inputs + i) - mean
                store(centred, o * inputs + i, w)
                largest = bits.larger(largest, bits.exponent(w))
                places[place + i // WORD * LANES] |= ones_of(w >= zero) << np.uint32(i % WORD)
                at = (i // LANES * turned.shape[1] + o // WORD) * LANES
                chosen = select(w >= zero, bit, splat(np.int32(0)))
                store(lanes, at, load(lanes, at) | chosen)
    return bits.is_finite(largest)


@jit
def _scaled_signs(centred, scale, used):
    for o in range(centred.shape[0]):
        for i in range(centred.shape[1]):
            used[o, i] = scale[o] if centred[o, i] >= 0 else -scale[o]


@jit
def _weight_backward(centred, order, open_sums, dweight):
    """As `ops.weight_binarizer.backward`, in place."""
    (outputs, inputs), zero, one = centred.shape, splat(np.float32(0)), splat(np.float32(1))
    for first in range(0, outputs, ROWS):
        for at in range(first * inputs, (first + ROWS) * inputs, LANES):
            w = load(centred, at)
            outside = (w > one) | (zero - w > one)
            store(dweight, at, select(outside, zero, load(dweight, at)))
        sums(dweight, first * inputs, inputs, open_sums, False, order, open_sums)
        for r in range(ROWS):
            mean, begin = splat(open_sums[r] / np.float32(inputs)), (first + r) * inputs
            for at in range(begin, begin + inputs, LANES):
                store(dweight, at, load(dweight, at) - mean)


def _plain(channel, token, tokens: int) -> list[np.ndarray]:
    """Weight and bias of the norm, and RPReLU's five arrays; a shift of 0 changes nothing."""
    zero = np.zeros(tokens, channel[0].dtype)
    given = [*channel, *(zero if array is None else array for array in token)]
    return [rows.plain(array) for array in given]


@jit
def _forward_of_signs(
    path, x, move, weights, scale, eps, weight, bias, shift_in, slope, shift_out, before, after,
    order, linear, means, open_sums, shortcut, product, words, stats, y,
):  # fmt: skip
    """Sixteen rows after the other: their signs, packed, their product, and `_forward`.

    False where a value is NaN or infinite.
    """
    length, inputs = x.shape
    step, largest = words.shape[1] * LANES, splat(np.int32(0))
    for begin in range(0, length, LANES):
        end, at = min(begin + LANES, length), begin // LANES * step
        largest = bits.larger(largest, _pack(x, move, begin, end, words, at))
        sixteen_rows(path, words, at, words.shape[1], weights, inputs, product)
        _forward(
            x, product, begin, end, begin, scale, eps, weight, bias, shift_in, slope, shift_out,
            before, after, order, linear, means, open_sums, shortcut, stats, y,
        )  # fmt: skip
    return bits.is_finite(largest)


@jit
def _pack(x, move, begin, end, words, at):
    """The signs of x + move in rows of a block; the largest exponent among them."""
    inputs, largest = x.shape[1], splat(np.int32(0))
    packed = words.reshape(-1)
    for r in range(begin, end):
        place = at + r - begin
        for i in range(0, inputs, WORD):
            low = load(x, r * inputs + i) + load(move, i)
            largest = bits.larger(largest, bits.exponent(low))
            word = ones_of(low >= splat(np.float32(0)))
            if i + LANES < inputs:
                high = load(x, r * inputs + i + LANES) + load(move, i + LANES)
                largest = bits.larger(largest, bits.exponent(high))
                word |= ones_of(high >= splat(np.float32(0))) << np.uint32(LANES)
            packed[place] = word
            place += LANES
    return largest


@jit
def _forward(
    x, product, first, end, base, scale, eps, weight, bias, shift_in, slope, shift_out, before,
    after, order, linear, means, open_sums, shortcut, stats, y,
):  # fmt: skip
    """Some rows, ROWS of them at a time; row r is r - base of the product."""
    outputs, channels, tokens = y.shape[1], len(shortcut), len(before)
    zero, count = splat(np.float32(0)), np.float32(outputs)
    for begin in range(first, end, ROWS):
        rows = min(ROWS, end - begin)
        for r in range(rows):
            for o in range(0, outputs, LANES):
                whole = load_as_floats(product, (begin - base + r) * outputs + o)
                store(linear, r * outputs + o, whole * load(scale, o))
        sums(linear, 0, outputs, means, False, order, open_sums)
        for r in range(ROWS):
            means[r] = open_sums[r] / count
        sums(linear, 0, outputs, means, True, order, open_sums)
        for r in range(rows):
            row = begin + r
            n, mean, deviation = row % tokens, means[r], np.sqrt(open_sums[r] / count + eps)
            stats[row, 0], stats[row, 1] = mean, deviation
            level, std, inverse = splat(mean), splat(deviation), splat(np.float32(1) / deviation)
            _fit(x, row, shortcut)
            for start in range(0, outputs, channels):
                for c in range(0, channels, LANES):
                    o = start + c
                    v = quotient(load(linear, r * outputs + o) - level, std, inverse)
                    v = v * load(weight, o) + load(bias, o) + load(shortcut, c)
                    v = v - load(shift_in, o) - broadcast(before, n)
                    v = select(v > zero, v, load(slope, o) * v) + load(shift_out, o)
                    store(y, row * outputs + o, v + broadcast(after, n))


@jit
def _fit(x, r, fitted):
    """Row r of fit(x), before it is repeated."""
    inputs, channels = x.shape[1], len(fitted)
    share, at = inputs // channels, r * inputs
    for c in range(0, channels, LANES):
        if share == 1:
            store(fitted, c, load(x, at + c))
        elif share == 2:
            store(fitted, c, sums_of_2(x, at + 2 * c) * splat(np.float32(0.5)))
        elif share == 4:
            store(fitted, c, sums_of_4(x, at + 4 * c) * splat(np.float32(0.25)))
        else:
            for k in range(c, c + LANES):
                total = x[r, share * k]
                for i in range(1, share):
                    total += x[r, share * k + i]
                fitted[k] = total / np.float32(share)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray | None, ...]:
    """dy (B, N, O) -> the gradients of forward's arrays, in their order."""
    x, move, given, per_token, linear, stats, ste = cache
    dx, dmove = np.empty(x.shape, x.dtype), np.zeros_like(move)
    grads, clip = [np.zeros_like(array) for array in given], ste == "clip"
    arrays, chosen = (rows.matrix(dy), rows.matrix(x), move), (linear, stats, given, clip)
    by_signs = isinstance(linear, _Full) and lookup.pays(popcount.path())
    back = _backward_by_signs if by_signs else _backward_by_blas
    dweight = back(*arrays, *chosen, rows.matrix(dx), dmove, grads)
    token = grads[5:] if per_token else (None, None)
    return dx, dmove, linear.weight_gradient(dweight), *grads[:5], *token


def _backward_by_blas(dy, x, move, linear, stats, given, clip, dx, dmove, grads) -> np.ndarray:
    """Gradients of all but the weights into dx, dmove and grads -> dW_b (O, I)."""
    dlinear, signs = np.empty(dy.shape, dy.dtype), np.empty(x.shape, x.dtype)
    room = _room_of_backward(x.shape[1], dy.shape[1])
    _backward(
        dy, x, linear.product(), 0, len(dy), 0, linear.scale, stats, *given, *room, dlinear, dx,
        *grads,
    )  # fmt: skip
    _each_sign_backward(x, move, dlinear @ linear.used(), clip, signs, dx, dmove)
    return np.ascontiguousarray(dlinear.T @ signs)


def _room_of_backward(inputs: int, outputs: int) -> tuple[np.ndarray, ...]:
    """For a row: of the shortcut and its gradient, of the norm and its gradient."""
    few = min(inputs, outputs)
    return tuple(np.empty(count, np.float32) for count in (few, few, outputs, outputs))


def _backward_by_signs(dy, x, move, linear, stats, given, clip, dx, dmove, grads) -> np.ndarray:
    """As `_backward_by_blas`, for stage "full"."""
    (outputs, inputs), dtype = linear.centred.shape, x.dtype
    product, dweight = np.empty((WORD, outputs), np.int32), np.zeros((outputs, inputs), dtype)
    dlinear, scaled = np.empty((WORD, outputs), dtype), np.empty((FOUR, outputs), dtype)
    dsigns, index = np.empty((WORD, inputs), dtype), np.empty(inputs, np.uint32)
    tables = np.empty(max(outputs, WORD) * LANES, dtype)
    _backward_of_signs(
        popcount.path(), dy, x, move, linear.packed.words, linear.weights.words, linear.turned,
        linear.scale, stats, *given, clip, product, *_room_of_backward(inputs, outputs), dlinear,
        scaled, dsigns, index, tables, dx, dmove, dweight, *grads,
    )  # fmt: skip
    return dweight


@jit
def _backward_of_signs(
    path, dy, x, move, words, weights, turned, scale, stats, weight, bias, shift_in, slope,
    shift_out, before, after, clip, product, shortcut, dshortcut, normalised, dnormalised, dlinear,
    scaled, dsigns, index, tables, dx, dmove, dproduct, dweight, dbias, dshift_in, dslope,
    dshift_out, dbefore, dafter,
):  # fmt: skip
    """All of it, WORD rows after the other, products by looking up.

    words: signs of x + move, weights: of Wc, turned: of its transpose, all packed. dproduct (O, I)
    is the gradient of W_b.
    """
    (length, inputs), outputs, count = x.shape, dy.shape[1], words.shape[1]
    groups, in_word = outputs // FOUR, WORD // FOUR
    for begin in range(0, length, WORD):
        end = min(begin + WORD, length)
        for first in range(begin, end, LANES):
            at, block = first // LANES * count * LANES, product[first - begin :]
            sixteen_rows(path, words, at, count, weights, inputs, block)
        _backward(
            dy, x, product, begin, end, begin, scale, stats, weight, bias, shift_in, slope,
            shift_out, before, after, shortcut, dshortcut, normalised, dnormalised, dlinear, dx,
            dweight, dbias, dshift_in, dslope, dshift_out, dbefore, dafter,
        )  # fmt: skip
        for at in range((end - begin) * outputs, WORD * outputs, LANES):
            store(dlinear, at, splat(np.float32(0)))
        for r in range(0, end - begin, FOUR):
            for k in range(FOUR):
                for o in range(0, outputs, LANES):
                    d = load(dlinear, (r + k) * outputs + o) * load(scale, o)
                    store(scaled, k * outputs + o, d)
            tabulate(SIGNS, scaled, 0, 1, outputs, groups, tables)
            at, steps = r * inputs, turned.shape[1]
            look_up(path, tables, groups, turned, inputs, steps, False, dsigns, at, inputs)
        _signs_backward(x, begin, end, move, dsigns, clip, index, dx, dmove)
        for o in range(0, outputs, FOUR):
            tabulate(SIGNS, dlinear, o, outputs, 1, in_word, tables)
            look_up(path, tables, in_word, index, inputs, 1, True, dproduct, o * inputs, inputs)


@jit
def _signs_backward(x, begin, end, move, dsigns, clip, index, dx, dmove):
    """Adds the gradient of z = x + move, WORD rows at most, to dx, and sums it up in dmove.

    index (I,): bit r is the sign of z in row begin + r.
    """
    inputs, zero = x.shape[1], splat(np.float32(0))
    for i in range(0, inputs, LANES):
        total, bit, word = zero, splat(np.int32(1)), splat(np.int32(0))
        for r in range(begin, end):
            at = r * inputs + i
            z = load(x, at) + load(move, i)
            word = word | select(z >= zero, bit, splat(np.int32(0)))
            bit = bit + bit
            dz = load(dsigns, at - begin * inputs) * surrogate(z, clip)
            total = total + dz
            store(dx, at, load(dx, at) + dz)
        store(index, i, word)
        store(dmove, i, load(dmove, i) + total)


@inlined
def surrogate(z, clip):
    """The derivative that stands in for the sign's, see `ops.sign`."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    size = select(z >= zero, z, zero - z)
    slope = (one - size) + (one - size)
    slope = select(slope > zero, slope, zero)
    return select(size > one, zero, one) if clip else slope


@jit
def _backward(
    dy, x, product, begin, end, base, scale, stats, weight, bias, shift_in, slope, shift_out,
    before, after, shortcut, dshortcut, normalised, dnormalised, dlinear, dx, dweight, dbias,
    dshift_in, dslope, dshift_out, dbefore, dafter,
):  # fmt: skip
    """Gradients of the linear map and, in dx, of the shortcut, for some rows.

    Row r is r - base of the product and of dlinear.
    """
    outputs, channels, tokens = dy.shape[1], len(shortcut), len(before)
    zero, count = splat(np.float32(0)), np.float32(outputs)
    for r in range(begin, end):
        at, there, n = r * outputs, (r - base) * outputs, r % tokens
        mean, std, inverse = splat(stats[r, 0]), splat(stats[r, 1]), np.float32(1) / stats[r, 1]
        inverse = splat(inverse)
        _fit(x, r, shortcut)
        all_dy, all_du, all_dnormalised, along = zero, zero, zero, zero
        for first in range(0, outputs, channels):
            for c in range(0, channels, LANES):
                # what forward had in its registers
                o = first + c
                linear = load_as_floats(product, there + o) * load(scale, o)
                norm = quotient(linear - mean, std, inverse)
                u = norm * load(weight, o) + load(bias, o) + load(shortcut, c)
                u = u - load(shift_in, o) - broadcast(before, n)
                # RPReLU
                d = load(dy, at + o)
                du = select(u > zero, d, load(slope, o) * d)
                store(dslope, o, load(dslope, o) + select(u > zero, zero, u) * d)
                store(dshift_out, o, load(dshift_out, o) + d)
                store(dbias, o, load(dbias, o) + du)
                all_dy, all_du = all_dy + d, all_du + du
                # the shortcut, and the norm
                if first == 0:
                    store(dshortcut, c, du)
                else:
                    store(dshortcut, c, load(dshortcut, c) + du)
                store(dweight, o, load(dweight, o) + du * norm)
                dnorm = du * load(weight, o)
                all_dnormalised, along = all_dnormalised + dnorm, along + dnorm * norm
                store(normalised, o, norm)
                store(dnormalised, o, dnorm)
        dafter[n] += sum_of_lanes(all_dy)
        dbefore[n] -= sum_of_lanes(all_du)
        level = splat(sum_of_lanes(all_dnormalised) / count)
        share = splat(sum_of_lanes(along) / count)
        for o in range(0, outputs, LANES):
            d = load(dnormalised, o) - level - load(normalised, o) * share
            store(dlinear, there + o, d * inverse)
        _shortcut_backward(dshortcut, channels, r, dx)
    for o in range(outputs):
        dshift_in[o] = -dbias[o]


@jit
def _shortcut_backward(dfitted, channels, r, dx):
    """Row r of the gradient of fit's input; the repeats are added up already."""
    inputs = dx.shape[1]
    share, at = inputs // channels, r * inputs
    part = splat(np.float32(1) / np.float32(share))
    for c in range(0, channels, LANES):
        if share == 1:
            store(dx, at + c, load(dfitted, c))
        elif share == 2:
            store_2_times(dx, at + 2 * c, load(dfitted, c) * part)
        elif share == 4:
            store_4_times(dx, at + 4 * c, load(dfitted, c) * part)
        else:
            for k in range(c, c + LANES):
                for i in range(share):
                    dx[r, share * k + i] = dfitted[k] / np.float32(share)


@jit
def _each_sign_backward(x, move, dsigns, clip, signs, dx, dmove):
    """`_signs_backward` of all rows, with the signs (R, I) as floats."""
    length, inputs = x.shape
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    for r in range(length):
        for i in range(0, inputs, LANES):
            at = r * inputs + i
            z = load(x, at) + load(move, i)
            store(signs, at, select(z >= zero, one, zero - one))
            dz = load(dsigns, at) * surrogate(z, clip)
            store(dmove, i, load(dmove, i) + dz)
            store(dx, at, load(dx, at) + dz)
