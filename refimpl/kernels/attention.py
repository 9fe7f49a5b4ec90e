"""Binary attention of sixteen queries of a head: scores, boolean, context [SPEC 2, 6.1, 6.2, 6.7].

A bit is decided by e > alpha'/2 * sum of e, without forming probabilities: e may be off by any
factor that the keys of a query share. So e is a power of 2 of the weighted ones of a ^ b, not of
scores, and where no weights can bring it out of range the largest score is not looked for. It is
computed: to read it from a table, since scores of signs are few, takes longer, as CPUs compute
sixteen at once but look up one after the other.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.popcount import WORD, ones_and_16x1, ones_xor_16x1
from refimpl.kernels.vector import (
    LANES,
    bits_of,
    broadcast,
    fma,
    load,
    of_bits,
    ones_of,
    popcount,
    select,
    shift_in_sign,
    splat,
    store,
    to_floats,
)

ROUNDING = np.float32(1.5 * 2**23)  # x + ROUNDING - ROUNDING is x, rounded to a whole number
SMALLEST = np.float32(-126)  # exponent of a normal float32; smaller powers count for nothing
NEAR = np.float32(100)  # 2 ** x for |x| up to it is a normal float32, and so are sums of them
LOG2_E = np.float32(math.log2(math.e))
# of 2 ** x where |x| <= 1/2, relative error 2e-9
POWERS = (1.0, 0.69314718, 0.24022646, 0.055503286, 0.009618489, 0.0013399931, 0.00015345812)


def weights_of(band_weight: np.ndarray, head_dim: int) -> np.ndarray:
    """What `weigh` multiplies ones by: a score is weight * (d - 2 ones) / sqrt(d)."""
    return band_weight.astype(np.float64) * (-2 * math.log2(math.e) / math.sqrt(head_dim))


@jit
def pack_values(field, pitch, at, tokens, channels, head_dim, floats, move, words, words_at):
    """sign(value + move), all of them finite, packed over the tokens.

    field (channels, pitch) -> words (heads, blocks of 16 channels, words, 16) uint32.
    """
    count, blocks = -(-tokens // WORD), -(-head_dim // LANES)
    zero = splat(np.float32(0))
    head, r = 0, 0
    for c in range(channels):
        block = head * blocks + r // LANES
        place = words_at + block * count * LANES + r % LANES
        r += 1
        if r == head_dim:
            head, r = head + 1, 0
        shift = broadcast(floats, move + c)
        for word in range(count):
            bits = np.uint32(0)
            for half in range(2):
                first = word * WORD + half * LANES
                left = tokens - first
                if left <= 0:
                    break
                z = load(field, c * pitch + at + first) + shift
                one = ones_of(z >= zero)
                if left < LANES:  # beyond the last token
                    one &= (np.uint32(1) << np.uint32(left)) - np.uint32(1)
                bits |= one << np.uint32(half * LANES)
            words[place + word * LANES] = bits


@jit
def products(path, words, queries, keys, head_dim, blocks, out, out_at):
    """Ones of a ^ b of sixteen queries with all keys: (16 * blocks, 16) int32, query by lane."""
    count = -(-head_dim // WORD)
    for block in range(blocks):
        keys_at = keys + block * count * LANES
        ones_xor_16x1(
            path, words, queries, words, keys_at, count, out, out_at + block * LANES * LANES
        )


@jit
def weigh(ints, high_at, tokens, head_dim, floats, weight, heads, bias, weights):
    """exp(score - what the keys of a query share) of each key and query, and below them their sums.

    ints: `products` of the only band, or of the low one at 0 and of the high one at high_at (0:
    there is none); their weight is at `weight` of `floats`, that of the high one `heads` further,
    see `weights_of`. What is added to the scores, (tokens, 16), begins at `bias` of `floats` (0:
    there is none) in units of log 2; it is -inf for a masked key. weights (tokens + 1, 16).
    """
    low, high = floats[weight], np.float32(0)
    if high_at > 0:
        high = floats[weight + heads]
    total = splat(np.float32(0))
    if bias == 0 and np.float32(head_dim) * (abs(low) + abs(high)) <= NEAR:
        for j in range(tokens):
            power = power_of_two(_score(ints, high_at, j, splat(low), splat(high)))
            store(weights, j * LANES, power)
            total = total + power
        store(weights, tokens * LANES, total)
        return
    largest = splat(np.float32(-np.inf))
    for j in range(tokens):
        score = _score(ints, high_at, j, splat(low), splat(high))
        if bias > 0:
            score = score + load(floats, bias + j * LANES)
        largest = select(score > largest, score, largest)
        store(weights, j * LANES, score)
    smallest = splat(SMALLEST)
    for j in range(tokens):
        score = load(weights, j * LANES) - largest
        # of a masked key it is nothing at all: also where alpha' is as small as can be
        power = power_of_two(select(score > smallest, score, smallest))
        power = select(score > splat(np.float32(-np.inf)), power, splat(np.float32(0)))
        store(weights, j * LANES, power)
        total = total + power
    store(weights, tokens * LANES, total)


@inlined
def _score(ints, high_at, j, low, high):
    score = to_floats(load(ints, j * LANES)) * low
    if high_at > 0:
        score = fma(to_floats(load(ints, high_at + j * LANES)), high, score)
    return score


@inlined
def exponential(x):
    """e ** x for x <= 0, to 2 ulp."""
    x, smallest = x * splat(LOG2_E), splat(SMALLEST)
    return power_of_two(select(x > smallest, x, smallest))


@inlined
def power_of_two(x):
    """2 ** x to 1 ulp where that is a normal float32: a whole power times a polynomial."""
    rounding = splat(ROUNDING)
    shifted = x + rounding  # the whole number is in the lowest bits
    rest = x - (shifted - rounding)
    p = fma(splat(np.float32(POWERS[6])), rest, splat(np.float32(POWERS[5])))
    p = fma(p, rest, splat(np.float32(POWERS[4])))
    p = fma(p, rest, splat(np.float32(POWERS[3])))
    p = fma(p, rest, splat(np.float32(POWERS[2])))
    p = fma(p, rest, splat(np.float32(POWERS[1])))
    p = fma(p, rest, splat(np.float32(POWERS[0])))
    return of_bits(bits_of(p) + (bits_of(shifted) << splat(np.int32(23))))


@jit
def binarize(weights, tokens, step, words, words_at, counts):
    """Bits weight > step / 2 * sum, packed over the keys: (words, 16); counts (16,) of ones."""
    limit = load(weights, tokens * LANES) * splat(step * np.float32(0.5))
    ones = splat(np.int32(0))
    for first in range(0, tokens, WORD):
        word = splat(np.int32(0))
        for j in range(min(first + WORD, tokens) - 1, first - 1, -1):
            word = shift_in_sign(word, limit - load(weights, j * LANES))
        ones = ones + popcount(word)
        store(words, words_at + first // WORD * LANES, word)
    store(counts, 0, ones)


@jit
def _without_own(words, values, first, counts, ints):
    """ones - (1 + v_i) / 2 * k: half of 2 ones - k - k v_i, for a query's k keys and own value."""
    for r in range(LANES):
        for lane in range(LANES):
            if words[values + r] >> np.uint32(first + lane) & np.uint32(1):
                ints[r * LANES + lane] -= counts[lane]


@jit
def attend(
    path, words, boolean, values, tokens, head_dim, counts, own, step, ints, context, context_at
):
    """Boolean bits times values, scaled: step * int, (head_dim, 16) with the query by lane.

    own: the tile of the queries among the keys where the values' differences from their own are
    added up [R1b]; -1 for the plain sum.
    """
    count = -(-tokens // WORD)
    two, offset = splat(np.float32(2)), splat(np.float32(0)) - to_floats(load(counts, 0))
    if own >= 0:
        offset = splat(np.float32(0))
    for first in range(0, head_dim, LANES):
        values_at = values + first // LANES * count * LANES
        ones_and_16x1(path, words, boolean, words, values_at, count, ints, 0)
        if own >= 0:
            _without_own(words, values_at + own // 2 * LANES, own % 2 * LANES, counts, ints)
        for r in range(min(LANES, head_dim - first)):
            whole = fma(to_floats(load(ints, r * LANES)), two, offset)
            store(context, context_at + (first + r) * LANES, whole * splat(step))
