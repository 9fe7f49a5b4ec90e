"""Twin of `ops.layer_norm`: one pass over each row, forward and backward."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit
from refimpl.kernels.rows import ROWS, pairwise_sum, sums
from refimpl.kernels.vector import LANES, load, quotient, splat, store, sum_of_lanes

Cache = ops.layer_norm.Cache


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> tuple[np.ndarray, Cache]:
    """x (..., C), weight and bias (C,) -> y like x."""
    if not rows.fits(x, (weight, x.shape[-1:]), (bias, x.shape[-1:])):
        return ops.layer_norm.forward(x, weight, bias, eps)
    weight, bias = rows.plain(weight), rows.plain(bias)
    normalised, y = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    std, eps = np.empty((*x.shape[:-1], 1), x.dtype), x.dtype.type(eps)
    arrays = rows.matrix(x), weight, bias, eps, *map(rows.matrix, (normalised, std, y))
    if _in_vectors(x):
        count = x.shape[-1]
        whole = np.zeros((ROWS, count), x.dtype)  # the last rows, filled up
        room = np.zeros(ROWS, x.dtype), np.empty(rows.room(count), x.dtype)
        _forward_in_vectors(*arrays, rows.order(count), whole, *room)
    else:
        _forward(*arrays)
    return y, Cache(normalised, std, weight)


def _in_vectors(x: np.ndarray) -> bool:
    return x.dtype == np.float32 and x.shape[-1] % LANES == 0


@jit
def _forward_in_vectors(
    x, weight, bias, eps, normalised, std, y, order, whole, means, open_sums
):  # fmt: skip
    """`_forward`, ROWS rows at a time."""
    (length, channels), count = x.shape, np.float32(x.shape[1])
    for begin in range(0, length, ROWS):
        source, at, rows = x, begin * channels, min(ROWS, length - begin)
        if rows < ROWS:
            for i in range(0, rows * channels, LANES):
                store(whole, i, load(x, at + i))
            source, at = whole, 0
        sums(source, at, channels, means, False, order, open_sums)
        for r in range(ROWS):
            means[r] = open_sums[r] / count
        sums(source, at, channels, means, True, order, open_sums)
        for r in range(rows):
            deviation = np.sqrt(open_sums[r] / count + eps)
            std[begin + r, 0] = deviation
            level, divisor = splat(means[r]), splat(deviation)
            inverse = splat(np.float32(1)) / divisor
            for c in range(0, channels, LANES):
                place = (begin + r) * channels + c
                v = quotient(load(x, place) - level, divisor, inverse)
                store(normalised, place, v)
                store(y, place, v * load(weight, c) + load(bias, c))


@jit
def _forward(x, weight, bias, eps, normalised, std, y):
    length, channels = x.shape
    squares, count = np.empty(channels, x.dtype), x.dtype.type(channels)
    values = x.reshape(-1)
    for r in range(length):
        mean = pairwise_sum(values, r * channels, channels) / count
        for c in range(channels):
            normalised[r, c] = x[r, c] - mean
        for c in range(channels):
            squares[c] = normalised[r, c] * normalised[r, c]
        deviation = np.sqrt(pairwise_sum(squares, 0, channels) / count + eps)
        std[r, 0] = deviation
        for c in range(channels):
            normalised[r, c] /= deviation
        for c in range(channels):
            y[r, c] = normalised[r, c] * weight[c] + bias[c]


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (..., C) -> (dx like dy, dweight (C,), dbias (C,))."""
    normalised, std, weight = cache
    if not rows.fits(dy, (normalised, dy.shape)):
        return ops.layer_norm.backward(dy, cache)
    dx, weight = np.empty(dy.shape, dy.dtype), rows.plain(weight)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(weight)
    back = _backward_in_vectors if _in_vectors(dy) else _backward
    back(
        rows.matrix(dy),
        rows.matrix(normalised),
        rows.matrix(std),
        weight,
        rows.matrix(dx),
        dweight,
        dbias,
    )
    return dx, dweight, dbias


@jit
def _backward(dy, normalised, std, weight, dx, dweight, dbias):
    length, channels = dy.shape
    count = dy.dtype.type(channels)
    dnormalised, products = np.empty(channels, dy.dtype), np.empty(channels, dy.dtype)
    for r in range(length):
        for c in range(channels):
            dbias[c] += dy[r, c]
        for c in range(channels):
            dweight[c] += dy[r, c] * normalised[r, c]
        for c in range(channels):
            dnormalised[c] = dy[r, c] * weight[c]
        for c in range(channels):
            products[c] = dnormalised[c] * normalised[r, c]
        along = pairwise_sum(products, 0, channels) / count
        mean = pairwise_sum(dnormalised, 0, channels) / count
        for c in range(channels):
            dx[r, c] = (dnormalised[c] - mean - normalised[r, c] * along) / std[r, 0]


@jit
def _backward_in_vectors(dy, normalised, std, weight, dx, dweight, dbias):
    (length, channels), zero = dy.shape, splat(np.float32(0))
    count = np.float32(channels)
    for r in range(length):
        total, along, first = zero, zero, r * channels
        for c in range(0, channels, LANES):
            d, norm = load(dy, first + c), load(normalised, first + c)
            store(dbias, c, load(dbias, c) + d)
            store(dweight, c, load(dweight, c) + d * norm)
            d = d * load(weight, c)
            total, along = total + d, along + d * norm
        level, share = splat(sum_of_lanes(total) / count), splat(sum_of_lanes(along) / count)
        inverse = splat(np.float32(1) / std[r, 0])
        for c in range(0, channels, LANES):
            d, norm = load(dy, first + c) * load(weight, c), load(normalised, first + c)
            store(dx, first + c, (d - level - norm * share) * inverse)
