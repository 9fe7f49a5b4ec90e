"""Binary attention of sixteen queries of a head: scores, boolean, context [SPEC 2, 6.1, 6.2].

Scores of signs are small whole numbers, so there are few different ones: the exponential of each is
read from a table, and a bit is decided by e > alpha'/2 * sum of e, without forming probabilities.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.compile import jit
from refimpl.kernels.popcount import WORD, and_16x1, xor_16x1
from refimpl.kernels.tiles import EXPONENT
from refimpl.kernels.vector import (
    LANES,
    any_of,
    bits_of,
    gather,
    load,
    ones_of,
    popcount,
    select,
    splat,
    store,
    to_floats,
)

WIDEST = 80.0  # between the scores of a head, so that no exponential in float32 is lost


def scores(weights: np.ndarray, head_dim: int) -> np.ndarray:
    """Every score that can occur, by whole number: float32 (heads, entries).

    weights: float32 (1 or 2 bands, heads). Entry i (or i * (d + 1) + j) belongs to the products
    2 i - d (and 2 j - d) of the bands.
    """
    products = np.arange(-head_dim, head_dim + 1, 2).astype(np.float32)  # (d + 1,)
    found = weights[0][:, None] * products  # (heads, d + 1)
    if len(weights) == 2:
        high = weights[1][:, None, None] * products
        found = (found[:, :, None] + high).reshape(len(found), -1)
    return found / np.float32(math.sqrt(head_dim))


def table(scores: np.ndarray) -> tuple[np.ndarray, bool]:
    """Exponentials of all scores or, where these lie too far apart, the bare scores; and which."""
    largest = scores.max(axis=1, keepdims=True)
    if (largest - scores.min(axis=1, keepdims=True)).max() > WIDEST:
        return scores, False
    return np.exp(scores - largest), True


@jit
def pack_values(field, pitch, at, tokens, channels, head_dim, floats, move, words, words_at):
    """sign(value + move) packed over the tokens; False on NaN or infinity.

    field (channels, pitch) -> words (heads, blocks of 16 channels, words, 16) uint32.
    """
    count, blocks = -(-tokens // WORD), -(-head_dim // LANES)
    zero, exponent = splat(np.float32(0)), splat(EXPONENT)
    broken = zero < zero
    for c in range(channels):
        r = c % head_dim
        block = c // head_dim * blocks + r // LANES
        place = words_at + block * count * LANES + r % LANES
        shift = splat(floats[move + c])
        for word in range(count):
            bits = np.uint32(0)
            for half in range(2):
                first = word * WORD + half * LANES
                left = tokens - first
                if left <= 0:
                    break
                z = load(field, c * pitch + at + first) + shift
                broken = broken | ((bits_of(z) & exponent) >= exponent)
                one = ones_of(z >= zero)
                if left < LANES:  # beyond the last token
                    one &= (np.uint32(1) << np.uint32(left)) - np.uint32(1)
                bits |= one << np.uint32(half * LANES)
            words[place + word * LANES] = bits
    return not any_of(broken)


@jit
def products(path, words, queries, keys, head_dim, blocks, out, out_at):
    """Whole-number scores of sixteen queries with all keys: (16 * blocks, 16), query by lane."""
    count = -(-head_dim // WORD)
    length = splat(np.int32(head_dim))
    for block in range(blocks):
        keys_at = keys + block * count * LANES
        place = out_at + block * LANES * LANES
        xor_16x1(path, words, queries, words, keys_at, count, length, out, place, LANES)


@jit
def weigh(ints, high_at, tokens, head_dim, floats, table, is_exponential, weights):
    """exp(score - a constant) of each key and query, and below them their sums.

    ints: products of the only band, or of the low one at 0 and of the high one at high_at (0:
    there is none). weights (tokens + 1, 16).
    """
    total = splat(np.float32(0))
    d, one, side = splat(np.int32(head_dim)), splat(np.int32(1)), splat(np.int32(head_dim + 1))
    for j in range(tokens):
        entry = (load(ints, j * LANES) + d) >> one
        if high_at > 0:
            entry = entry * side + ((load(ints, high_at + j * LANES) + d) >> one)
        weight = gather(floats, table, entry)
        store(weights, j * LANES, weight)
        total = total + weight
    store(weights, tokens * LANES, total)
    if not is_exponential:
        _exponentials(weights, tokens)


@jit
def _exponentials(weights, tokens):
    """Scores -> exp(score - the largest of its query) and their sums, for scores far apart."""
    for lane in range(LANES):
        column = weights[lane : (tokens + 1) * LANES : LANES]
        largest = column[:tokens].max()
        total = np.float32(0)
        for j in range(tokens):
            column[j] = math.exp(column[j] - largest)
            total += column[j]
        column[tokens] = total


@jit
def binarize(weights, tokens, step, words, words_at, counts):
    """Bits weight > step / 2 * sum, packed over the keys: (words, 16); counts (16,) of ones."""
    limit = load(weights, tokens * LANES) * splat(step * np.float32(0.5))
    none, ones = splat(np.int32(0)), splat(np.int32(0))
    for first in range(0, tokens, WORD):
        word, bit = none, splat(np.int32(1))
        for j in range(first, min(first + WORD, tokens)):
            word = word | select(load(weights, j * LANES) > limit, bit, none)
            bit = bit + bit
        ones = ones + popcount(word)
        store(words, words_at + first // WORD * LANES, word)
    store(counts, 0, ones)


@jit
def attend(path, words, boolean, values, tokens, head_dim, counts, step, ints, context, context_at):
    """Boolean bits times values, scaled: step * int, (head_dim, 16) with the query by lane."""
    count = -(-tokens // WORD)
    offset = splat(np.int32(0)) - load(counts, 0)
    for first in range(0, head_dim, LANES):
        values_at = values + first // LANES * count * LANES
        and_16x1(path, words, boolean, words, values_at, count, offset, ints, 0, LANES)
        for r in range(min(LANES, head_dim - first)):
            whole = to_floats(load(ints, r * LANES))
            store(context, context_at + (first + r) * LANES, whole * splat(step))
