"""Twin of `ops.layer_norm`: one pass over each row, forward and backward."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit
from refimpl.kernels.rows import pairwise_sum

Cache = ops.layer_norm.Cache


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> tuple[np.ndarray, Cache]:
    """x (..., C), weight and bias (C,) -> y like x."""
    if not rows.fits(x, (weight, x.shape[-1:]), (bias, x.shape[-1:])):
        return ops.layer_norm.forward(x, weight, bias, eps)
    normalised, y = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    std = np.empty((*x.shape[:-1], 1), x.dtype)
    _forward(
        rows.matrix(x),
        weight,
        bias,
        x.dtype.type(eps),
        rows.matrix(normalised),
        rows.matrix(std),
        rows.matrix(y),
    )
    return y, Cache(normalised, std, weight)


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
    dx = np.empty(dy.shape, dy.dtype)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(weight)
    _backward(
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
