"""Fused loops over a tile: the channels of sixteen tokens, token by lane [SPEC 3, 5, 6.3].

A tile is (channels, 16) float32 in a flat array from a place `…_at` on. Whatever is done a channel
at a time (pack the signs, normalise, shift) then needs no sum across lanes, and sums over channels
run in the same order on every CPU. A tile inside a field, which stencils look at, has its channels
`…_step` apart.

LayerNorm takes its variance in the pass that makes the values: of their differences to a *level*,
the mean of a token's first sixteen channels. These are a part of the variance, which is therefore
at least 16 / channels of the square by which the level misses the mean: however large the values
are and however little they vary, what cancels in it is bounded.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.popcount import WORD, ones_xor_16x1
from refimpl.kernels.vector import (
    LANES,
    any_of,
    bits_of,
    broadcast,
    fma,
    load,
    select,
    shift_in_sign,
    splat,
    square_root,
    store,
    to_floats,
)

EXPONENT = np.int32(0x7F800000)  # all of these bits are set in NaN and infinity
# Of an output channel, side by side in `floats`: weight of the norm, its bias less RPReLU's
# shift_in, slope, shift_out.
COEFFICIENTS = 4


# --- signs ----------------------------------------------------------------------------------------


@jit
def pack(x, x_at, x_step, channels, floats, move, words, words_at):
    """sign(x + move) of a tile as (words, 16) uint32, token by lane; all are finite.

    move (channels,) begins at that place of `floats`. It has no -0.0, and so has no sum.
    """
    for first in range(0, channels, WORD):
        end = min(first + WORD, channels)
        negative = splat(np.int32(0))
        for c in range(end - 1, first - 1, -1):
            z = load(x, x_at + c * x_step) + broadcast(floats, move + c)
            negative = shift_in_sign(negative, z)
        store(words, words_at + first // WORD * LANES, negative ^ ones_up_to(end - first))


@inlined
def ones_up_to(count):
    """As many ones, at least one, from the lowest bit on."""
    return splat(np.uint32(0xFFFFFFFF >> (WORD - count)))


@jit
def finite(x, x_at, x_step, channels, floats, move):
    """Whether no x + move of a tile is NaN or infinity."""
    exponent = splat(EXPONENT)
    broken = exponent > exponent
    for c in range(channels):
        z = load(x, x_at + c * x_step) + broadcast(floats, move + c)
        broken = broken | ((bits_of(z) & exponent) >= exponent)
    return not any_of(broken)


# --- LayerNorm ------------------------------------------------------------------------------------


@inlined
def level_of(x, x_at, channels):
    """Minus the mean of the first sixteen channels of each token."""
    zero, count = splat(np.float32(0)), min(channels, LANES)
    a, b, c, d = zero, zero, zero, zero
    for i in range(count):
        a, b, c, d = b, c, d, a + load(x, x_at + i * LANES)
    return ((a + b) + (c + d)) * splat(np.float32(-1) / np.float32(count))


@inlined
def scale_and_shift(total, squares, channels, eps):
    """1 / sqrt(variance + eps) of values of which these are the sums, and minus the mean times it.

    So (value - mean) / sqrt(variance + eps) is value * scale + shift.
    """
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    share = splat(np.float32(1) / np.float32(channels))
    minus = (zero - total) * share
    variance = fma(minus, total, squares) * share
    variance = select(zero > variance, zero, variance)  # what rounding left below 0, but not NaN
    scale = one / square_root(variance + splat(eps))
    return scale, minus * scale


@inlined
def moments(x, x_at, channels, eps):
    """Of a tile: the level, and scale and shift of what differs from it."""
    zero = splat(np.float32(0))
    level = level_of(x, x_at, channels)
    a, b, c, d = zero, zero, zero, zero
    total, other = zero, zero
    for i in range(channels):
        deviation = load(x, x_at + i * LANES) + level
        total, other = other, total + deviation
        a, b, c, d = b, c, d, fma(deviation, deviation, a)
    scale, shift = scale_and_shift(total + other, (a + b) + (c + d), channels, eps)
    return level, scale, shift


@jit
def normalise(x, x_at, channels, floats, weight, bias, eps, out, out_at, out_step):
    """LayerNorm of a tile; channel c goes to out_at + c * out_step.

    False where a token has NaN or infinity: its variance is NaN then.
    """
    level, scale, shift = moments(x, x_at, channels, eps)
    for c in range(channels):
        normalised = fma(load(x, x_at + c * LANES) + level, scale, shift)
        y = fma(normalised, broadcast(floats, weight + c), broadcast(floats, bias + c))
        store(out, out_at + c * out_step, y)
    return not any_of((bits_of(scale) & splat(EXPONENT)) >= splat(EXPONENT))


@jit
def centre(x, x_at, channels, eps, out, norm):
    """What a tile differs by from its level, and in norm (2, 16) scale and shift; see `channel`."""
    level, scale, shift = moments(x, x_at, channels, eps)
    for c in range(channels):
        store(out, c * LANES, load(x, x_at + c * LANES) + level)
    store(norm, 0, scale)
    store(norm, LANES, shift)


# --- projections ----------------------------------------------------------------------------------


@jit
def multiply(path, words, inputs, bits, bits_at, outputs, floats, scale, eps, ints, linear, norm):
    """Packed signs of a tile times packed weights, scale_o * int, less its level, as `centre`.

    `ints` (16, 16) is room for whole numbers.
    """
    zero, minus_two = splat(np.float32(0)), splat(np.float32(-2))
    count = -(-inputs // WORD)
    length = splat(np.float32(inputs))
    level, total, other = zero, zero, zero
    a, b, c, d = zero, zero, zero, zero
    for first in range(0, outputs, LANES):
        ones_xor_16x1(path, words, 0, bits, bits_at + first * count, count, ints, 0)
        rows = min(LANES, outputs - first)
        if first == 0:
            for r in range(rows):
                whole = fma(to_floats(load(ints, r * LANES)), minus_two, length)
                a, b, c, d = b, c, d, fma(whole, broadcast(floats, scale + r), a)
            level = ((a + b) + (c + d)) * splat(np.float32(-1) / np.float32(rows))
            a, b, c, d = zero, zero, zero, zero
        for r in range(rows):
            whole = fma(to_floats(load(ints, r * LANES)), minus_two, length)
            deviation = fma(whole, broadcast(floats, scale + first + r), level)
            store(linear, (first + r) * LANES, deviation)
            total, other = other, total + deviation
            a, b, c, d = b, c, d, fma(deviation, deviation, a)
    factor, shift = scale_and_shift(total + other, (a + b) + (c + d), outputs, eps)
    store(norm, 0, factor)
    store(norm, LANES, shift)


@inlined
def channel(linear, o, scale, shift, floats, coefficients, term, token_in, token_out):
    """RPReLU(LayerNorm(linear) + term) of channel o; see `multiply` and COEFFICIENTS."""
    at = coefficients + o * COEFFICIENTS
    normalised = fma(load(linear, o * LANES), scale, shift)
    u = fma(normalised, broadcast(floats, at), broadcast(floats, at + 1)) + term - token_in
    slope = select(u > splat(np.float32(0)), splat(np.float32(1)), broadcast(floats, at + 2))
    return fma(u, slope, broadcast(floats, at + 3)) + token_out


@inlined
def fitted(x, at, step, together):
    """The mean of so many channels from `at` on: fit() where there are fewer outputs."""
    term = load(x, at)
    if together > 1:
        for i in range(1, together):
            term = term + load(x, at + i * step)
        term = term * splat(np.float32(1) / np.float32(together))
    return term


@jit
def finish(
    linear, norm, outputs, x, x_at, x_step, inputs, floats, coefficients, token_in, token_out,
    out, out_at, out_step,
):  # fmt: skip
    """The rest of a projection with no more outputs than inputs; see `multiply`.

    token_in, token_out: places of the shifts of this tile's tokens in `floats`.
    """
    scale, shift = load(norm, 0), load(norm, LANES)
    before, after = load(floats, token_in), load(floats, token_out)
    together = inputs // outputs
    for o in range(outputs):
        term = fitted(x, x_at + o * together * x_step, x_step, together)
        y = channel(linear, o, scale, shift, floats, coefficients, term, before, after)
        store(out, out_at + o * out_step, y)


@jit
def finish_onto(
    linear, norm, outputs, x, inputs, floats, coefficients, token_in, token_out,
    kept, out, stream, stream_at, alpha, beta,
):  # fmt: skip
    """`finish`, and a residual addition with LayerScale: stream += alpha * y + beta.

    Where it is `kept`, y is in `out` afterwards.
    """
    scale, shift = load(norm, 0), load(norm, LANES)
    before, after = load(floats, token_in), load(floats, token_out)
    together = inputs // outputs
    for o in range(outputs):
        term = fitted(x, o * together * LANES, LANES, together)
        y = channel(linear, o, scale, shift, floats, coefficients, term, before, after)
        if kept:
            store(out, o * LANES, y)
        scaled = fma(y, broadcast(floats, alpha + o), broadcast(floats, beta + o))
        at = stream_at + o * LANES
        store(stream, at, load(stream, at) + scaled)


@jit
def finish_signs(
    linear, norm, outputs, x, x_at, x_step, inputs, floats, coefficients, token_in, token_out,
    move, words, kept, means,
):  # fmt: skip
    """The rest of a projection whose outputs enter a sign, see `pack`.

    It has no fewer outputs than inputs. Where they are `kept`, the outputs replace `linear`. With
    four times as many outputs as inputs `means` (inputs, 16) are those of each four, which fit()
    takes for the shortcut of the projection that follows.
    """
    scale, shift = load(norm, 0), load(norm, LANES)
    before, after = load(floats, token_in), load(floats, token_out)
    quarter, fourfold = splat(np.float32(0.25)), outputs == 4 * inputs
    second, third, fourth = quarter, quarter, quarter  # of four channels, from the last one down
    source = inputs - 1  # fit() repeats the inputs
    for begin in range((outputs - 1) // WORD * WORD, -1, -WORD):
        end = min(begin + WORD, outputs)
        negative = splat(np.int32(0))
        for o in range(end - 1, begin - 1, -1):
            term = load(x, x_at + source * x_step)
            y = channel(linear, o, scale, shift, floats, coefficients, term, before, after)
            if kept:
                store(linear, o * LANES, y)
            if fourfold and o % 4 == 0:
                store(means, o // 4 * LANES, (((y + second) + third) + fourth) * quarter)
            second, third, fourth = y, second, third
            negative = shift_in_sign(negative, y + broadcast(floats, move + o))
            source = source - 1 if source > 0 else inputs - 1
        store(words, begin // WORD * LANES, negative ^ ones_up_to(end - begin))


@jit
def finish_heads(
    linear, norm, heads, head_dim, x, x_at, x_step, floats, coefficients, token_in, token_out,
    move, words, words_at, words_step, kept, total, total_at, first,
):  # fmt: skip
    """The rest of a projection to queries or keys: `finish_signs` head by head, and their sum.

    The words of a head lie `words_step` apart. total = the outputs where they are its `first` term,
    else total + outputs.
    """
    scale, shift = load(norm, 0), load(norm, LANES)
    before, after = load(floats, token_in), load(floats, token_out)
    for head in range(heads):
        for begin in range(0, head_dim, WORD):
            end = min(begin + WORD, head_dim)
            negative = splat(np.int32(0))
            for r in range(end - 1, begin - 1, -1):
                o = head * head_dim + r
                term = load(x, x_at + o * x_step)
                y = channel(linear, o, scale, shift, floats, coefficients, term, before, after)
                if kept:
                    store(linear, o * LANES, y)
                negative = shift_in_sign(negative, y + broadcast(floats, move + o))
                if not first:
                    y = load(total, total_at + o * LANES) + y
                store(total, total_at + o * LANES, y)
            place = words_at + head * words_step + begin // WORD * LANES
            store(words, place, negative ^ ones_up_to(end - begin))


@jit
def combine(
    linear, norm, shortcut, shortcut_at, value, channels, floats, coefficients, token_in,
    token_out, out,
):  # fmt: skip
    """RPReLU(norm + shortcut + value term), what attention hands on; see `finish`."""
    scale, shift = load(norm, 0), load(norm, LANES)
    before, after = load(floats, token_in), load(floats, token_out)
    for c in range(channels):
        term = load(shortcut, shortcut_at + c * LANES) + load(value, c * LANES)
        y = channel(linear, c, scale, shift, floats, coefficients, term, before, after)
        store(out, c * LANES, y)


@jit
def cut(field, pitch, here, channels, tile):
    """The tile of a field (channels, pitch) that begins at `here`."""
    for c in range(channels):
        store(tile, c * LANES, load(field, c * pitch + here))


@jit
def clear(tile, channels):
    """0 in a tile."""
    for c in range(channels):
        store(tile, c * LANES, splat(np.float32(0)))


@jit
def pool(x, channels, tokens, token, pooled):
    """Add the mean over a tile's tokens, as far as there are any, to lane 0 of `pooled`."""
    for c in range(channels):
        total = pooled[c * LANES]
        for lane in range(min(LANES, tokens - token)):
            total += x[c * LANES + lane] / np.float32(tokens)
        pooled[c * LANES] = total
