"""Fused loops over a tile: the channels of sixteen tokens, token by lane [SPEC 3, 5, 6.3].

A tile is (channels, 16) float32 in a flat array from a place `…_at` on. Whatever is done a channel
at a time (pack the signs, normalise, shift) then needs no sum across lanes, and sums over channels
run in the same order on every CPU.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.popcount import WORD, xor_16x1
from refimpl.kernels.vector import (
    LANES,
    any_of,
    bits_of,
    broadcast,
    load,
    select,
    splat,
    square_root,
    store,
    to_floats,
)

EXPONENT = np.int32(0x7F800000)  # all of these bits are set in NaN and infinity


@jit
def pack(x, x_at, channels, floats, move, words, words_at):
    """sign(x + move) of a tile as (words, 16) uint32, token by lane; False on NaN or infinity.

    move (channels,) begins at that place of `floats`.
    """
    zero, none, exponent = splat(np.float32(0)), splat(np.int32(0)), splat(EXPONENT)
    broken = zero < zero
    for first in range(0, channels, WORD):
        word, bit = none, splat(np.int32(1))
        for c in range(first, min(first + WORD, channels)):
            z = load(x, x_at + c * LANES) + broadcast(floats, move + c)
            word = word | select(z >= zero, bit, none)
            bit = bit + bit
            broken = broken | ((bits_of(z) & exponent) >= exponent)
        store(words, words_at + first // WORD * LANES, word)
    return not any_of(broken)


@jit
def multiply(path, words, inputs, bits, bits_at, outputs, floats, scale, ints, linear, sums):
    """Packed signs of a tile times packed weights: scale_o * int, a tile of `outputs` channels.

    `ints` (16, 16) is room for whole numbers; `sums` (16,) gets the sum over the channels.
    """
    total = splat(np.float32(0))
    count = -(-inputs // WORD)
    length = splat(np.int32(inputs))
    for first in range(0, outputs, LANES):
        block_at = bits_at + first * count
        xor_16x1(path, words, 0, bits, block_at, count, length, ints, 0, LANES)
        for o in range(first, min(first + LANES, outputs)):
            whole = to_floats(load(ints, (o - first) * LANES))
            y = whole * broadcast(floats, scale + o)
            store(linear, o * LANES, y)
            total = total + y
    store(sums, 0, total)


@inlined
def sum_of(x, x_at, channels):
    """Sum over the channels of each token.

    It is four sums, of every fourth channel: one would wait for each addition.
    """
    zero = splat(np.float32(0))
    s0, s1, s2, s3 = zero, zero, zero, zero
    fours = channels // 4 * 4
    for c in range(0, fours, 4):
        at = x_at + c * LANES
        s0 = s0 + load(x, at)
        s1 = s1 + load(x, at + LANES)
        s2 = s2 + load(x, at + 2 * LANES)
        s3 = s3 + load(x, at + 3 * LANES)
    for c in range(fours, channels):
        s0 = s0 + load(x, x_at + c * LANES)
    return (s0 + s1) + (s2 + s3)


@inlined
def scale_of(x, x_at, channels, mean, eps):
    """1 / sqrt(variance + eps) over the channels of each token, in sums as `sum_of`."""
    zero = splat(np.float32(0))
    v0, v1, v2, v3 = zero, zero, zero, zero
    fours = channels // 4 * 4
    for c in range(0, fours, 4):
        at = x_at + c * LANES
        d0, d1 = load(x, at) - mean, load(x, at + LANES) - mean
        d2, d3 = load(x, at + 2 * LANES) - mean, load(x, at + 3 * LANES) - mean
        v0, v1, v2, v3 = v0 + d0 * d0, v1 + d1 * d1, v2 + d2 * d2, v3 + d3 * d3
    for c in range(fours, channels):
        d0 = load(x, x_at + c * LANES) - mean
        v0 = v0 + d0 * d0
    variance = ((v0 + v1) + (v2 + v3)) / splat(np.float32(channels))
    return splat(np.float32(1)) / square_root(variance + splat(eps))


@inlined
def rprelu(y, floats, c, places, token_in, token_out):
    """Improved RPReLU of channel c; places: shift_in, slope, shift_out in `floats` [SPEC 3]."""
    shift_in, slope, shift_out = places
    u = y - broadcast(floats, shift_in + c) - token_in
    bent = select(u > splat(np.float32(0)), u, u * broadcast(floats, slope + c))
    return bent + broadcast(floats, shift_out + c) + token_out


@jit
def normalise(x, x_at, channels, floats, weight, bias, eps, out, out_at, out_step):
    """LayerNorm of a tile; channel c goes to out_at + c * out_step."""
    mean = sum_of(x, x_at, channels) / splat(np.float32(channels))
    scale = scale_of(x, x_at, channels, mean, eps)
    for c in range(channels):
        normalised = (load(x, x_at + c * LANES) - mean) * scale
        y = normalised * broadcast(floats, weight + c) + broadcast(floats, bias + c)
        store(out, out_at + c * out_step, y)


@jit
def finish(
    linear, sums, outputs, x, x_at, inputs, floats, norm, rprelu_at, tokens, eps, out, out_at, kept
):
    """RPReLU(LayerNorm(linear) + fit(x)), the rest of a projection; see `multiply` for the sums.

    norm = (weight, bias), rprelu_at = (shift_in, slope, shift_out), tokens = (shift_in, shift_out)
    of this tile's tokens: places in `floats`. Where `kept`, `linear` becomes its norm.
    """
    mean = load(sums, 0) / splat(np.float32(outputs))
    scale = scale_of(linear, 0, outputs, mean, eps)
    token_in, token_out = load(floats, tokens[0]), load(floats, tokens[1])
    together = max(inputs // outputs, 1)  # fit() takes the mean of so many channels,
    for first in range(0, outputs, inputs // together):  # or repeats them
        for c in range(inputs // together):
            o, at = first + c, x_at + c * together * LANES
            y = (load(linear, o * LANES) - mean) * scale
            y = y * broadcast(floats, norm[0] + o) + broadcast(floats, norm[1] + o)
            if kept:
                store(linear, o * LANES, y)
            shortcut = load(x, at)
            if together > 1:
                for other in range(1, together):
                    shortcut = shortcut + load(x, at + other * LANES)
                shortcut = shortcut / splat(np.float32(together))
            y = rprelu(y + shortcut, floats, o, rprelu_at, token_in, token_out)
            store(out, out_at + o * LANES, y)


@jit
def add_scaled(x, x_at, branch, channels, floats, alpha, beta):
    """x += alpha * branch + beta, a residual addition with LayerScale."""
    for c in range(channels):
        scaled = load(branch, c * LANES) * broadcast(floats, alpha + c) + broadcast(
            floats, beta + c
        )
        store(x, x_at + c * LANES, load(x, x_at + c * LANES) + scaled)


@jit
def combine(norm, shortcut, shortcut_at, value, channels, floats, rprelu_at, tokens, out):
    """RPReLU(norm + shortcut + value term), what attention hands on; see `finish`."""
    token_in, token_out = load(floats, tokens[0]), load(floats, tokens[1])
    for c in range(channels):
        y = load(norm, c * LANES) + load(shortcut, shortcut_at + c * LANES)
        y = y + load(value, c * LANES)
        store(out, c * LANES, rprelu(y, floats, c, rprelu_at, token_in, token_out))


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
def place(tile, channels, field, pitch, here):
    """The inverse of `cut`."""
    for c in range(channels):
        store(field, c * pitch + here, load(tile, c * LANES))


@jit
def add(branch, channels, total, total_at, first):
    """total = branch where it is the first term, else total + branch."""
    for c in range(channels):
        term = load(branch, c * LANES)
        if not first:
            term = load(total, total_at + c * LANES) + term
        store(total, total_at + c * LANES, term)


@jit
def pool(x, channels, tokens, token, pooled):
    """Add the mean over a tile's tokens, as far as there are any, to lane 0 of `pooled`."""
    for c in range(channels):
        total = pooled[c * LANES]
        for lane in range(min(LANES, tokens - token)):
            total += x[c * LANES + lane] / np.float32(tokens)
        pooled[c * LANES] = total
