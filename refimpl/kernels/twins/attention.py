"""Twin of a whole unit: binary attention of [SPEC 6.1, 6.2] between its projections.

Of `models.binary._attention` it does everything that is no projection and no band: signs, scores,
softmax, boolean, context, LayerNorm, shortcuts with the differential term, RPReLU. The interpreter
runs it in the place of a unit of nodes where no one listens; it takes what they take, in their
order, and its values are theirs, bit for bit.

It goes image by image, so that what lies between stays in the caches. Signs are kept as bits, in
both layouts: of sixteen tokens along channels, of sixteen channels along tokens. The products of
backward, all of real numbers with signs, are looked up (`kernels.lookup`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.kernels import bits, lookup, popcount, rows, vector
from refimpl.kernels.compile import jit
from refimpl.kernels.lookup import BITS, FOUR, SIGNS, look_up, tabulate
from refimpl.kernels.popcount import WORD, ones_and_16x1, sixteen_rows
from refimpl.kernels.rows import ROWS, sums
from refimpl.kernels.twins import neighbours
from refimpl.kernels.twins.projection import surrogate
from refimpl.kernels.vector import (
    LANES,
    broadcast,
    gather,
    load,
    load_as_floats,
    max_of_lanes,
    ones_of,
    quotient,
    select,
    splat,
    store,
    sum_of_lanes,
    to_floats,
)


class _Given(NamedTuple):
    """All parameters, in the order of the nodes; what a configuration has not is neutral."""

    moves: tuple[np.ndarray, ...]  # (C,) for each projection
    weights: np.ndarray  # (bands, heads) of the bands
    alpha: np.ndarray  # () or (heads, 1, 1)
    gain: np.ndarray  # (C,), as all below
    bias: np.ndarray
    shortcut: np.ndarray
    neighbour: np.ndarray
    shift_in: np.ndarray
    slope: np.ndarray
    shift_out: np.ndarray
    before: np.ndarray  # (N,)
    after: np.ndarray


class Cache(NamedTuple):
    inputs: tuple[np.ndarray, ...]  # (B, N, C) of each projection, the value last
    given: _Given
    counts: tuple[int, ...]  # arrays of the parameters that there are, see `_take`
    divisor: np.ndarray  # (gh, gw) of the neighbours
    by_token: np.ndarray  # signs: (B, projections, heads, blocks of tokens, words of d, 16)
    by_channel: np.ndarray  # (B, projections, blocks of C, words of N, 16)
    prob: np.ndarray  # (B, heads, N, keys in whole sixteens)
    by_query: np.ndarray  # prob's bits: (B, heads, blocks of queries, words of keys, 16)
    by_key: np.ndarray  # (B, heads, blocks of keys, words of queries, 16)
    stats: np.ndarray  # (B, N, 2) mean and standard deviation of the context
    ste: str


def forward(
    *arrays: np.ndarray,
    heads: int,
    bands: int,
    weighted: bool,
    differential: bool,
    grid: tuple[int, int],
    border: str,
    ste: str,
    eps: float,
) -> tuple[np.ndarray, Cache] | None:
    """Outputs of the projections (B, N, C) and parameters -> o (B, N, C).

    None where the operations must do it: for float64, where the channels of a head are no vectors
    of sixteen, where something is not finite, and on CPUs without AVX-512.
    """
    path = popcount.path()
    inputs, parameters = arrays[: 2 * bands + 1], arrays[2 * bands + 1 :]
    x = inputs[-1]
    if not lookup.pays(path) or x.dtype != np.float32 or not _fits(inputs, parameters, heads):
        return None
    given, counts = _take(parameters, len(inputs), heads, bands, x, weighted, differential)
    if not (np.isfinite(given.alpha).all() and np.isfinite(given.slope).all()):
        return None  # the operations spread it, or say so
    batch, tokens, channels = x.shape
    inputs = tuple(rows.plain(m) for m in inputs)
    signs = _room_of_signs(len(inputs), x.shape, heads)
    keys, blocks = -(-tokens // LANES) * LANES, -(-tokens // LANES)
    # sums are made of ROWS rows, of which the last may be beyond the end
    whole = np.empty((batch * heads * tokens + ROWS, keys), x.dtype)
    prob = whole[: batch * heads * tokens]
    outside = np.where(np.arange(keys) < tokens, 0, -np.inf).astype(x.dtype)
    root = x.dtype.type(math.sqrt(channels // heads))
    products = np.empty((bands, LANES, keys), np.int32)
    if not _scores(path, inputs, given.moves, given.weights, root, outside, products, *signs, prob):
        return None
    np.exp(prob, out=prob)
    words = -(-tokens // WORD)
    by_query = np.zeros((batch, heads, blocks, words, LANES), np.uint32)
    by_key = np.zeros((batch, heads, blocks, words, LANES), np.uint32)
    divisor = _divisor(grid, border, differential, x.dtype)
    y, stats = np.empty(x.shape, x.dtype), np.empty((batch, tokens, 2), x.dtype)
    open_sums = np.empty(max(rows.room(tokens), rows.room(channels)), x.dtype)
    orders = rows.order(tokens), rows.order(channels)
    _context(
        path, inputs, *given[3:], _steps(given.alpha, heads), x.dtype.type(eps), divisor, *orders,
        open_sums, *_room(tokens, channels), signs[1], whole, by_query, by_key, stats, y,
    )  # fmt: skip
    prob = prob.reshape(batch, heads, tokens, keys)
    return y, Cache(inputs, given, counts, divisor, *signs, prob, by_query, by_key, stats, ste)


def _fits(inputs, parameters, heads: int) -> bool:
    x = inputs[-1]
    if x.ndim != 3 or x.shape[2] % (LANES * heads):
        return False
    same = all(m.shape == x.shape and m.dtype == x.dtype for m in inputs)
    return same and x.size > 0 and all(p.dtype == x.dtype for p in parameters)


def _take(parameters, projections: int, heads: int, bands: int, x, weighted, differential):
    """The parameters by their names, and how many there are of weights, differential, tokens."""
    left = list(parameters)
    batch, tokens, channels = x.shape

    def take(count: int) -> list[np.ndarray]:
        return [rows.plain(left.pop(0)) for _ in range(count)]

    one, none = np.ones(channels, x.dtype), np.zeros(channels, x.dtype)
    moves = tuple(take(projections))
    (weights,) = take(1) if weighted else [np.ones((bands, heads), x.dtype)]
    (alpha,) = take(1)
    gain, bias = take(2)
    shortcut, neighbour = take(2) if differential else (one, none)
    rprelu, shifts = take(3), take(len(left))
    before, after = shifts or [np.zeros(tokens, x.dtype)] * 2
    given = _Given(
        moves, weights, alpha.reshape(parameters[projections + weighted].shape), gain, bias,
        shortcut, neighbour, *rprelu, before, after,
    )  # fmt: skip
    return given, (int(weighted), 2 * differential, len(shifts))


def _room_of_signs(projections: int, shape: tuple[int, ...], heads: int):
    batch, tokens, channels = shape
    head_words = -(-channels // heads // WORD)
    by_token = (batch, projections, heads, -(-tokens // LANES), head_words, LANES)
    by_channel = (batch, projections, channels // LANES, -(-tokens // WORD), LANES)
    return np.zeros(by_token, np.uint32), np.zeros(by_channel, np.uint32)


def _room(tokens: int, channels: int) -> tuple[np.ndarray, ...]:
    """For an image: its context, ROWS means, the neighbours' mean, and for sixteen bits of ones."""
    whole = -(-tokens // ROWS) * ROWS
    joined, means = np.zeros((whole, channels), np.float32), np.zeros(ROWS, np.float32)
    mean = np.zeros((1, tokens, channels), np.float32)
    return joined, means, mean, np.empty((LANES + 1) * LANES, np.int32)


def _divisor(grid: tuple[int, int], border: str, differential: bool, dtype) -> np.ndarray:
    if not differential:
        return np.zeros((0, 0), dtype)
    return neighbours.divisor_of(grid, border).astype(dtype)


def _steps(alpha: np.ndarray, heads: int) -> np.ndarray:
    """alpha' of each head (heads,)."""
    return np.broadcast_to(ops.boolean.step_of(alpha).reshape(-1), heads).copy()


@jit
def _scores(path, inputs, moves, weights, root, outside, products, by_token, by_channel, prob):
    """prob (rows, keys) = scores less the largest of the row; False where one is not finite.

    Beyond the last key it is -inf.
    """
    batch, tokens, channels = inputs[0].shape
    heads, blocks, words = by_token.shape[2:5]
    bands, keys = weights.shape[0], prob.shape[1]
    head_dim, zero = channels // heads, splat(np.int32(0))
    low, high, divisor = products[0], products[bands - 1], splat(root)
    inverse, largest = splat(np.float32(1)) / divisor, zero
    for b in range(batch):
        for t in range(len(inputs)):
            x, move = inputs[t][b], moves[t]
            found = _pack(x, move, by_token[b, t], by_channel[b, t])
            largest = bits.larger(largest, found)
        for h in range(heads):
            for block in range(blocks):
                for band in range(bands):
                    queries = by_token[b, 2 * band, h]
                    sixteen_rows(
                        path, queries, block * words * LANES, words, by_token[b, 2 * band + 1, h],
                        head_dim, products[band],
                    )  # fmt: skip
                first = (b * heads + h) * tokens + block * LANES
                for r in range(min(LANES, tokens - block * LANES)):
                    most, at = splat(np.float32(-np.inf)), (first + r) * keys
                    for k in range(0, keys, LANES):
                        score = load_as_floats(low, r * keys + k) * splat(weights[0, h])
                        if bands == 2:
                            other = load_as_floats(high, r * keys + k) * splat(weights[1, h])
                            score = score + other
                        score = quotient(score, divisor, inverse)
                        largest = bits.larger(largest, bits.exponent(score))
                        score = score + load(outside, k)
                        most = select(score > most, score, most)
                        store(prob, at + k, score)
                    most = splat(max_of_lanes(most))
                    for k in range(0, keys, LANES):
                        store(prob, at + k, load(prob, at + k) - most)
    return bits.is_finite(largest)


@jit
def _pack(x, move, by_token, by_channel):
    """The signs of x + move (N, C) of an image in both layouts; the largest `exponent`."""
    tokens, channels = x.shape
    heads, blocks, words = by_token.shape[:3]
    head_dim, token_words = channels // heads, by_channel.shape[1]
    lanes, places = by_channel.reshape(-1), by_token.reshape(-1)
    zero, largest = splat(np.float32(0)), splat(np.int32(0))
    for n in range(tokens):
        bit = splat(np.uint32(np.uint32(1) << np.uint32(n % WORD)))
        for h in range(heads):
            place = (h * blocks + n // LANES) * words * LANES + n % LANES
            for i in range(0, head_dim, LANES):
                c = h * head_dim + i
                z = load(x, n * channels + c) + load(move, c)
                largest = bits.larger(largest, bits.exponent(z))
                positive = z >= zero
                places[place + i // WORD * LANES] |= ones_of(positive) << np.uint32(i % WORD)
                at = (c // LANES * token_words + n // WORD) * LANES
                chosen = select(positive, bit, splat(np.int32(0)))
                store(lanes, at, load(lanes, at) | chosen)
    return largest


@jit
def _context(
    path, inputs, gain, bias, shortcut, neighbour, shift_in, slope, shift_out, before, after, step,
    eps, divisor, order_of_keys, order_of_channels, open_sums, joined, means, mean, ones,
    by_channel, prob, by_query, by_key, stats, y,
):  # fmt: skip
    """prob (rows, keys), exponentials, becomes the probabilities; y is what attention gives."""
    batch, tokens, channels = y.shape
    heads, count, zero = len(step), np.float32(channels), splat(np.float32(0))
    last = len(inputs) - 1
    for b in range(batch):
        for h in range(heads):
            first = (b * heads + h) * tokens
            _binarize(
                prob, first, tokens, step[h], order_of_keys, means, open_sums, by_query[b, h],
                by_key[b, h],
            )  # fmt: skip
        _join(path, by_channel[b, last], by_query[b], step, tokens, ones, joined)
        for begin in range(0, tokens, ROWS):
            sums(joined, begin * channels, channels, means, False, order_of_channels, open_sums)
            for r in range(ROWS):
                means[r] = open_sums[r] / count
            sums(joined, begin * channels, channels, means, True, order_of_channels, open_sums)
            for r in range(min(ROWS, tokens - begin)):
                std = np.sqrt(open_sums[r] / count + eps)
                stats[b, begin + r, 0], stats[b, begin + r, 1] = means[r], std
        _neighbour_mean(inputs[last][b : b + 1], divisor, mean)
        _activate_input(inputs, b, stats[b], gain, bias, shortcut, neighbour, mean, joined)
        out = y[b]
        for n in range(tokens):
            for c in range(0, channels, LANES):
                at = n * channels + c
                u = load(joined, at) - load(shift_in, c) - broadcast(before, n)
                u = select(u > zero, u, load(slope, c) * u) + load(shift_out, c)
                store(out, at, u + broadcast(after, n))


@jit
def _binarize(prob, first, tokens, step, order, means, open_sums, by_query, by_key):
    """Rows of a head from `first` on: divided by their sums, and the bits of them."""
    keys, words = prob.shape[1], by_query.shape[1]
    lanes, places = by_key.reshape(-1), by_query.reshape(-1)
    alpha, half = splat(step), splat(np.float32(0.5))
    inverse_alpha = splat(np.float32(1)) / alpha
    for begin in range(0, tokens, ROWS):
        sums(prob, (first + begin) * keys, keys, means, False, order, open_sums)
        for r in range(min(ROWS, tokens - begin)):
            n, at = begin + r, (first + begin + r) * keys
            total = splat(open_sums[r])
            inverse = splat(np.float32(1)) / total
            bit = splat(np.uint32(np.uint32(1) << np.uint32(n % WORD)))
            for k in range(0, keys, LANES):
                p = quotient(load(prob, at + k), total, inverse)
                store(prob, at + k, p)
                one = quotient(p, alpha, inverse_alpha) > half
                place = (n // LANES * words + k // WORD) * LANES + n % LANES
                places[place] |= ones_of(one) << np.uint32(k % WORD)
                there = (k // LANES * words + n // WORD) * LANES
                chosen = select(one, bit, splat(np.int32(0)))
                store(lanes, there, load(lanes, there) | chosen)


@jit
def _join(path, values, by_query, step, tokens, ones, joined):
    """The context of an image, heads side by side: joined (N, C) = alpha' * bits . signs."""
    heads, blocks, words = by_query.shape[:3]
    channels = joined.shape[1]
    head_dim = channels // heads
    counts = LANES * LANES  # behind the ones of sixteen queries and channels
    for h in range(heads):
        factor, chosen = splat(step[h]), by_query[h]
        for block in range(blocks):
            count, at = splat(np.int32(0)), block * words * LANES
            for word in range(words):
                count = count + vector.popcount(load(chosen, at + word * LANES))
            store(ones, counts, count)
            for i in range(0, head_dim, LANES):
                c = h * head_dim + i
                values_at = c // LANES * words * LANES
                ones_and_16x1(path, values, values_at, chosen, at, words, ones, 0)
                for r in range(min(LANES, tokens - block * LANES)):
                    both = load(ones, r * LANES)
                    whole = both + both - broadcast(ones, counts + r)
                    place = (block * LANES + r) * channels + c
                    store(joined, place, to_floats(whole) * factor)


@jit
def _neighbour_mean(value, divisor, mean):
    """mean (1, N, C) of the neighbours of value's tokens, where there is a differential term."""
    if divisor.size > 0:
        for i in range(0, mean.size, LANES):
            store(mean, i, splat(np.float32(0)))
        neighbours.add_neighbours(value, divisor, mean)


@jit
def _activate_input(inputs, b, stats, gain, bias, shortcut, neighbour, mean, joined):
    """joined (N, C), the context, becomes what RPReLU reads: its norm and all shortcuts."""
    tokens, channels = stats.shape[0], joined.shape[1]
    for n in range(tokens):
        level, std = splat(stats[n, 0]), splat(stats[n, 1])
        inverse = splat(np.float32(1)) / std
        for c in range(0, channels, LANES):
            at = n * channels + c
            norm = quotient(load(joined, at) - level, std, inverse)
            store(joined, at, norm * load(gain, c) + load(bias, c))
    last = len(inputs) - 1
    for t in range(last):
        x = inputs[t][b]
        for i in range(0, tokens * channels, LANES):
            store(joined, i, load(joined, i) + load(x, i))
    value = inputs[last][b]
    for n in range(tokens):
        for c in range(0, channels, LANES):
            at = n * channels + c
            term = load(shortcut, c) * load(value, at) - load(neighbour, c) * load(mean, at)
            store(joined, at, load(joined, at) + term)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, ...]:
    """dy (B, N, C) -> the gradients of forward's arrays, in their order."""
    given, x = cache.given, cache.inputs[-1]
    heads = cache.by_token.shape[2]
    dinputs = tuple(np.empty(x.shape, x.dtype) for _ in cache.inputs)
    grads = [np.zeros_like(array) for array in given[3:]]
    dmoves = tuple(np.zeros_like(move) for move in given.moves)
    dweights, dsteps = np.zeros_like(given.weights), np.zeros(heads, x.dtype)
    root = x.dtype.type(math.sqrt(x.shape[2] // heads))
    _backward(
        popcount.path(), np.ascontiguousarray(dy), cache.inputs, given.moves, given.weights,
        *given[3:], _steps(given.alpha, heads), root, cache.divisor, cache.by_token,
        cache.by_channel, cache.prob, cache.by_query, cache.by_key, cache.stats,
        cache.ste == "clip", *_room_of_backward(cache), dinputs, dmoves, dweights, dsteps, *grads,
    )  # fmt: skip
    free = given.alpha >= given.alpha.dtype.type(ops.boolean.ALPHA_MIN)
    dsteps = dsteps if given.alpha.ndim else dsteps.sum()
    dalpha = np.asarray(dsteps.reshape(given.alpha.shape) * free)
    weighted, differential, shifts = cache.counts
    dgain, dbias, *rest = grads
    return (
        *dinputs, *dmoves, *[dweights][:weighted], dalpha, dgain, dbias, *rest[:differential],
        *rest[2:5], *rest[5 : 5 + shifts],
    )  # fmt: skip


def _room_of_backward(cache: Cache) -> tuple[np.ndarray, ...]:
    """For an image: that of forward, and gradients of what lies between, tokens in whole fours."""
    _, tokens, channels = cache.inputs[-1].shape
    heads, keys = cache.prob.shape[1], cache.prob.shape[3]
    whole, head_dim = -(-tokens // FOUR) * FOUR, channels // heads
    joined, _, mean, ones = _room(tokens, channels)
    shapes = (
        (whole, channels),  # of the context
        (tokens, channels),  # of what RPReLU reads
        (len(cache.inputs), whole, channels),  # of the signs
        (whole, keys),  # of the scores of a head
        (FOUR, keys),  # of the probabilities of four queries
        (head_dim, keys),  # of a head's values, transposed
        (max(whole, head_dim) * LANES,),  # tables
    )
    # rows beyond the last token stay 0
    gradients = (np.zeros(shape, np.float32) for shape in shapes)
    lanes = keys * np.arange(LANES, dtype=np.int32)
    return joined, mean, np.empty_like(mean), ones, *gradients, lanes


@jit
def _backward(
    path, dy, inputs, moves, weights, gain, bias, shortcut, neighbour, shift_in, slope, shift_out,
    before, after, step, root, divisor, by_token, by_channel, prob, by_query, by_key, stats, clip,
    joined, mean, dmean, ones, dcontext, du, dsigns, dscores, drows, turned, tables, lanes, dinputs,
    dmoves, dweights, dsteps, dgain, dbias, dshortcut, dneighbour, dshift_in, dslope, dshift_out,
    dbefore, dafter,
):  # fmt: skip
    """Image by image: back through RPReLU and the norm, then head by head, then to the signs."""
    batch, tokens, channels = dy.shape
    heads, bands, last = len(step), weights.shape[0], len(inputs) - 1
    head_dim = channels // heads
    for b in range(batch):
        value = inputs[last][b]
        _join(path, by_channel[b, last], by_query[b], step, tokens, ones, joined)
        _neighbour_mean(inputs[last][b : b + 1], divisor, mean)
        _norms(joined, stats[b], dcontext)  # room of dcontext, until it has its values
        _activate_input(inputs, b, stats[b], gain, bias, shortcut, neighbour, mean, joined)
        _outer_backward(
            dy[b], value, stats[b], gain, shortcut, neighbour, shift_in, slope, before, mean,
            joined, dcontext, du, dmean, dinputs[last][b], dgain, dbias, dshortcut, dneighbour,
            dslope, dshift_out, dbefore, dafter,
        )  # fmt: skip
        if divisor.size > 0:
            neighbours.add_back(dmean, divisor, dinputs[last][b : b + 1])
        for h in range(heads):
            c = h * head_dim
            dsteps[h] += _scores_backward(
                path, dcontext, c, head_dim, by_token[b, last, h], prob[b, h], step[h], root,
                tables, drows, dscores,
            )  # fmt: skip
            _values_backward(
                path, dcontext, c, head_dim, by_key[b, h], tables, turned, lanes, tokens,
                dsigns[last],
            )  # fmt: skip
            first, end = c // LANES, (c + head_dim) // LANES
            for band in range(bands):
                queries, keys = 2 * band, 2 * band + 1
                _product_backward(
                    path, dscores, True, by_channel[b, keys, first:end], tables, dsigns[queries], c
                )
                _product_backward(
                    path, dscores, False, by_channel[b, queries, first:end], tables, dsigns[keys], c
                )
        for t in range(last + 1):
            dinput = dinputs[t][b]
            others = dinput if t == last else du
            for h in range(heads):
                factor = step[h] if t == last else weights[t // 2, h]
                along = _signs_backward(
                    inputs[t][b], moves[t], dsigns[t], factor, h * head_dim, head_dim, clip, others,
                    dinput, dmoves[t],
                )  # fmt: skip
                if t < last and t % 2 == 0:
                    dweights[t // 2, h] += along
    for c in range(channels):
        dshift_in[c] = -dbias[c]


@jit
def _norms(joined, stats, norms):
    """norms (N, C) = the context without gain and bias."""
    channels = joined.shape[1]
    for n in range(len(stats)):
        level, std = splat(stats[n, 0]), splat(stats[n, 1])
        inverse = splat(np.float32(1)) / std
        for c in range(0, channels, LANES):
            at = n * channels + c
            store(norms, at, quotient(load(joined, at) - level, std, inverse))


@jit
def _outer_backward(
    dy, value, stats, gain, shortcut, neighbour, shift_in, slope, before, mean, activated, dcontext,
    du, dmean, dvalue, dgain, dbias, dshortcut, dneighbour, dslope, dshift_out, dbefore, dafter,
):  # fmt: skip
    """Back through RPReLU, the differential term and the norm; dcontext holds the norm before."""
    (tokens, channels), zero = dy.shape, splat(np.float32(0))
    count = np.float32(channels)
    for n in range(tokens):
        all_dy, all_du, all_dnorm, along = zero, zero, zero, zero
        inverse = splat(np.float32(1) / stats[n, 1])
        for c in range(0, channels, LANES):
            at = n * channels + c
            u = load(activated, at) - load(shift_in, c) - broadcast(before, n)
            d = load(dy, at)
            dinput = select(u > zero, d, load(slope, c) * d)
            store(dslope, c, load(dslope, c) + select(u > zero, zero, u) * d)
            store(dshift_out, c, load(dshift_out, c) + d)
            store(dbias, c, load(dbias, c) + dinput)
            store(du, at, dinput)
            all_dy, all_du = all_dy + d, all_du + dinput
            # the differential term
            store(dvalue, at, load(shortcut, c) * dinput)
            store(dmean, at, zero - load(neighbour, c) * dinput)
            store(dshortcut, c, load(dshortcut, c) + dinput * load(value, at))
            store(dneighbour, c, load(dneighbour, c) - dinput * load(mean, at))
            # the norm
            norm = load(dcontext, at)
            store(dgain, c, load(dgain, c) + dinput * norm)
            dnorm = dinput * load(gain, c)
            all_dnorm, along = all_dnorm + dnorm, along + dnorm * norm
        dafter[n] += sum_of_lanes(all_dy)
        dbefore[n] -= sum_of_lanes(all_du)
        level = splat(sum_of_lanes(all_dnorm) / count)
        share = splat(sum_of_lanes(along) / count)
        for c in range(0, channels, LANES):
            at = n * channels + c
            d = load(du, at) * load(gain, c) - level - load(dcontext, at) * share
            store(dcontext, at, d * inverse)


@jit
def _scores_backward(path, dcontext, c, head_dim, values, prob, step, root, tables, drows,
                     dscores):  # fmt: skip
    """Back through the product, the boolean and softmax of a head: dscores (N, keys) -> dalpha'.

    values: signs (blocks of tokens, words, 16). The gradient is that before the division by root.
    """
    (tokens, keys), channels = prob.shape, dcontext.shape[1]
    words, zero, one = values.shape[1], splat(np.float32(0)), splat(np.float32(1))
    groups = head_dim // FOUR
    alpha, half = splat(step), splat(np.float32(0.5))
    inverse, dstep, factor = one / alpha, zero, splat(np.float32(1) / root)
    for begin in range(0, tokens, FOUR):
        tabulate(SIGNS, dcontext, begin * channels + c, 1, channels, groups, tables)
        look_up(path, tables, groups, values, keys, words, False, drows, 0, keys)
        for r in range(min(FOUR, tokens - begin)):
            along, at = zero, (begin + r) * keys
            for k in range(0, keys, LANES):
                p, d = load(prob, at + k), load(drows, r * keys + k)
                q = quotient(p, alpha, inverse)
                over = q > one
                rest = d * (select(q > half, one, zero) - q)
                dstep = dstep + select(over, d, rest)
                d = select(over, zero, d)
                store(drows, r * keys + k, d)
                along = along + d * p
            level = splat(sum_of_lanes(along))
            for k in range(0, keys, LANES):
                d = (load(drows, r * keys + k) - level) * load(prob, at + k)
                store(dscores, at + k, d * factor)
    return sum_of_lanes(dstep)


@jit
def _values_backward(
    path, dcontext, c, head_dim, by_key, tables, turned, lanes, tokens, dvalues
):
    """dvalues (N, C) of a head, before alpha': the bits, transposed, times the gradient."""
    whole, channels = dcontext.shape
    blocks, words = by_key.shape[:2]
    keys, groups = blocks * LANES, whole // FOUR
    for i in range(0, head_dim, FOUR):
        tabulate(BITS, dcontext, c + i, channels, 1, groups, tables)
        look_up(path, tables, groups, by_key, keys, words, False, turned, i * keys, keys)
    for n in range(tokens):
        for i in range(0, head_dim, LANES):
            places = load(lanes, 0) + splat(np.int32(i * keys + n))
            store(dvalues, n * channels + c + i, gather(turned, places))


@jit
def _product_backward(path, dscores, of_rows, signs, tables, dsigns, c):
    """dsigns (N, C) of a head: dscores, or transposed, times signs (blocks of d, words, 16)."""
    whole, keys = dscores.shape
    blocks, words = signs.shape[:2]
    groups, channels = whole // FOUR, dsigns.shape[1]
    for begin in range(0, whole, FOUR):
        if of_rows:
            tabulate(SIGNS, dscores, begin * keys, 1, keys, groups, tables)
        else:
            tabulate(SIGNS, dscores, begin, keys, 1, groups, tables)
        at = begin * channels + c
        look_up(path, tables, groups, signs, blocks * LANES, words, False, dsigns, at, channels)


@jit
def _signs_backward(x, move, dsigns, factor, first, head_dim, clip, others, dx, dmove):
    """dx = others + the gradient of a head's z = x + move, and dmove -> sum of sign * dsign."""
    (tokens, channels), zero = x.shape, splat(np.float32(0))
    along, scale = zero, splat(factor)
    for c in range(first, first + head_dim, LANES):
        total = zero
        for n in range(tokens):
            at = n * channels + c
            z, d = load(x, at) + load(move, c), load(dsigns, at)
            along = along + select(z >= zero, d, zero - d)
            dz = d * scale * surrogate(z, clip)
            total = total + dz
            store(dx, at, load(others, at) + dz)
        store(dmove, c, load(dmove, c) + total)
    return sum_of_lanes(along)
