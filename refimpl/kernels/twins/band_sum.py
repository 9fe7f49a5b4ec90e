"""Twin of `ops.band_sum`: one pass over the products of each head, forward and backward."""

from __future__ import annotations

import math

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit
from refimpl.kernels.rows import pairwise_sum

Cache = ops.band_sum.Cache


def forward(
    low: np.ndarray, high: np.ndarray, band_weight: np.ndarray, head_dim: int
) -> tuple[np.ndarray, Cache]:
    """low, high (B, heads, N, N), band_weight (2, heads): low, high -> scores (B, heads, N, N)."""
    others = (high, low.shape), (band_weight, (2, *low.shape[1:2]))
    if low.ndim != 4 or not rows.fits(low, *others):
        return ops.band_sum.forward(low, high, band_weight, head_dim)
    low, high = np.ascontiguousarray(low), np.ascontiguousarray(high)
    scores, root = np.empty(low.shape, low.dtype), low.dtype.type(math.sqrt(head_dim))
    _forward(_by_head(low), _by_head(high), band_weight, root, _by_head(scores))
    return scores, Cache(low, high, band_weight[:, :, None, None], head_dim)


def _by_head(x: np.ndarray) -> np.ndarray:
    """(B, heads, N, N) -> (B, heads, N * N), a view."""
    return x.reshape(*x.shape[:2], -1)


@jit
def _forward(low, high, weights, root, scores):
    for b in range(low.shape[0]):
        for h in range(low.shape[1]):
            for i in range(low.shape[2]):
                total = weights[0, h] * low[b, h, i] + weights[1, h] * high[b, h, i]
                scores[b, h, i] = total / root


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, heads, N, N) -> (dlow, dhigh like dy, dband_weight (2, heads))."""
    low, high, weights, head_dim = cache
    if not rows.fits(dy, (low, dy.shape)):
        return ops.band_sum.backward(dy, cache)
    dlow, dhigh = np.empty(dy.shape, dy.dtype), np.empty(dy.shape, dy.dtype)
    root, weights = dy.dtype.type(math.sqrt(head_dim)), weights[:, :, 0, 0]
    dweights = np.zeros(weights.shape, dy.dtype)
    dy = np.ascontiguousarray(dy)
    _backward(
        *map(_by_head, (dy, low, high)), weights, root, *map(_by_head, (dlow, dhigh)), dweights
    )
    return dlow, dhigh, dweights


@jit
def _backward(dy, low, high, weights, root, dlow, dhigh, dweights):
    count = dy.shape[2]
    dsum, products = np.empty(count, dy.dtype), np.empty(count, dy.dtype)
    for b in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for i in range(count):
                dsum[i] = dy[b, h, i] / root
            for i in range(count):
                products[i] = dsum[i] * low[b, h, i]
            dweights[0, h] += pairwise_sum(products, 0, count)
            for i in range(count):
                products[i] = dsum[i] * high[b, h, i]
            dweights[1, h] += pairwise_sum(products, 0, count)
            for i in range(count):
                dlow[b, h, i] = weights[0, h] * dsum[i]
            for i in range(count):
                dhigh[b, h, i] = weights[1, h] * dsum[i]
