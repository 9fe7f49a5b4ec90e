"""Binary attention of sixteen queries of a head: scores, boolean, context [SPEC 2, 6.1, 6.2, 6.7].

A bit is decided by e > alpha'/2 * sum of e, without forming probabilities. The exponentials are
computed: to read them from a table, since scores of signs are few, takes longer, as CPUs compute
sixteen at once but look up one after the other.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.popcount import WORD, and_16x1, xor_16x1
from refimpl.kernels.tiles import EXPONENT
from refimpl.kernels.vector import (
    LANES,
    any_of,
    bits_of,
    broadcast,
    load,
    of_bits,
    ones_of,
    popcount,
    select,
    splat,
    store,
    to_floats,
)

ROUNDING = np.float32(1.5 * 2**23)  # x + ROUNDING - ROUNDING is x, rounded to a whole number
SMALLEST = np.float32(-126)  # exponent of a normal float32; smaller powers count for nothing
LOG2_E = np.float32(math.log2(math.e))
# of 2 ** x where |x| <= 1/2, relative error 2e-9
POWERS = (1.0, 0.69314718, 0.24022646, 0.055503286, 0.009618489, 0.0013399931, 0.00015345812)


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
        shift = broadcast(floats, move + c)
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
def weigh(ints, high_at, tokens, head_dim, floats, weight, heads, bias, weights):
    """exp(score - largest score of the query) of each key and query, and below them their sums.

    ints: products of the only band, or of the low one at 0 and of the high one at high_at (0:
    there is none); their weight is at `weight` of `floats`, that of the high one `heads` further.
    What is added to the scores, (tokens, 16), begins at `bias` of `floats` (0: there is none);
    it is -inf for a masked key. weights (tokens + 1, 16).
    """
    low, high = broadcast(floats, weight), splat(np.float32(0))
    if high_at > 0:
        high = broadcast(floats, weight + heads)
    root = np.float32(math.sqrt(head_dim))
    power_of_two = math.frexp(root)[0] == 0.5  # then a product is the quotient, to the bit
    largest = splat(np.float32(-np.inf))
    for j in range(tokens):
        score = to_floats(load(ints, j * LANES)) * low
        if high_at > 0:
            score = score + to_floats(load(ints, high_at + j * LANES)) * high
        score = score * splat(np.float32(1) / root) if power_of_two else score / splat(root)
        largest = select(score > largest, score, largest)
        store(weights, j * LANES, score)
    if bias > 0:  # in loops of its own: a branch in the others would slow them down
        largest = _add(floats, bias, tokens, weights)
    total = splat(np.float32(0))
    for j in range(tokens):
        power = exponential(load(weights, j * LANES) - largest)
        store(weights, j * LANES, power)
        total = total + power
    store(weights, tokens * LANES, total)
    if bias > 0:
        _mask(floats, bias, tokens, weights)


@inlined
def _add(floats, bias, tokens, scores):
    """scores += bias; the largest score of each query."""
    largest = splat(np.float32(-np.inf))
    for j in range(tokens):
        score = load(scores, j * LANES) + load(floats, bias + j * LANES)
        largest = select(score > largest, score, largest)
        store(scores, j * LANES, score)
    return largest


@inlined
def _mask(floats, bias, tokens, weights):
    """0 for masked keys: their power is the smallest float32, which was nothing to the sum."""
    zero, masked = splat(np.float32(0)), splat(np.float32(-np.inf))
    for j in range(tokens):
        seen = load(floats, bias + j * LANES) > masked
        store(weights, j * LANES, select(seen, load(weights, j * LANES), zero))


@inlined
def exponential(x):
    """e ** x for x <= 0, to 2 ulp: 2 ** whole * 2 ** rest, the latter a polynomial."""
    smallest, rounding = splat(SMALLEST), splat(ROUNDING)
    x = x * splat(LOG2_E)
    x = select(x > smallest, x, smallest)
    shifted = x + rounding  # the whole number is in the lowest bits
    rest = x - (shifted - rounding)
    p = splat(np.float32(POWERS[6])) * rest + splat(np.float32(POWERS[5]))
    p = p * rest + splat(np.float32(POWERS[4]))
    p = p * rest + splat(np.float32(POWERS[3]))
    p = p * rest + splat(np.float32(POWERS[2]))
    p = p * rest + splat(np.float32(POWERS[1]))
    p = p * rest + splat(np.float32(POWERS[0]))
    return of_bits(bits_of(p) + (bits_of(shifted) << splat(np.int32(23))))


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
