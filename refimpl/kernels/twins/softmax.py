"""Twin of `ops.softmax`: all but the exponential, which NumPy has in vectors."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit
from refimpl.kernels.rows import pairwise_sum

Cache = ops.softmax.Cache


def forward(x: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, Cache]:
    """As `ops.softmax.forward`, which does the masked ones itself."""
    if mask is not None or not rows.fits(x):
        return ops.softmax.forward(x, mask)
    y = np.empty(x.shape, x.dtype)
    if not _shift(rows.matrix(x), rows.matrix(y)):
        return ops.softmax.forward(x)
    np.exp(y, out=y)
    _normalise(rows.matrix(y))
    return y, Cache(y)


@jit
def _shift(x, y):
    """y = x - the maximum of each row; False where a value is NaN or infinity."""
    broken = 0
    for r in range(x.shape[0]):
        largest = x[r, 0]
        for c in range(x.shape[1]):
            v = x[r, c]
            largest = v if v > largest else largest
        for c in range(x.shape[1]):
            broken += not np.isfinite(x[r, c])
        for c in range(x.shape[1]):
            y[r, c] = x[r, c] - largest
    return broken == 0


@jit
def _normalise(y):
    values = y.reshape(-1)
    for r in range(y.shape[0]):
        total = pairwise_sum(values, r * y.shape[1], y.shape[1])
        for c in range(y.shape[1]):
            y[r, c] /= total


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (..., N) -> (dx like dy,)."""
    if not rows.fits(dy, (cache.y, dy.shape)):
        return ops.softmax.backward(dy, cache)
    dx = np.empty(dy.shape, dy.dtype)
    _backward(rows.matrix(dy), rows.matrix(cache.y), rows.matrix(dx))
    return (dx,)


@jit
def _backward(dy, y, dx):
    products = np.empty(y.shape[1], y.dtype)
    for r in range(y.shape[0]):
        for c in range(y.shape[1]):
            products[c] = dy[r, c] * y[r, c]
        along = pairwise_sum(products, 0, y.shape[1])
        for c in range(y.shape[1]):
            dx[r, c] = (dy[r, c] - along) * y[r, c]
