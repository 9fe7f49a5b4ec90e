"""Twin of `ops.fit` where channels are added: their means forward, the tiled ones backward."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit

Cache = ops.fit.Cache


def forward(x: np.ndarray, outputs: int) -> tuple[np.ndarray, Cache]:
    """x (..., I) -> y (..., O); one of I and O must divide the other. O = I gives x itself."""
    if not rows.fits(x) or not 0 < outputs < x.shape[-1] or x.shape[-1] % outputs:
        return ops.fit.forward(x, outputs)
    y = np.empty((*x.shape[:-1], outputs), x.dtype)
    _means(rows.matrix(x), rows.matrix(y))
    return y, Cache(x.shape[-1], outputs)


@jit
def _means(x, y):
    share = x.shape[1] // y.shape[1]
    for r in range(y.shape[0]):
        for o in range(y.shape[1]):
            total = x[r, o * share]
            for i in range(1, share):
                total += x[r, o * share + i]
            y[r, o] = total / x.dtype.type(share)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (..., O) -> (dx (..., I),)."""
    inputs, outputs = cache
    if not rows.fits(dy) or inputs == outputs:
        return ops.fit.backward(dy, cache)
    dx = np.empty((*dy.shape[:-1], inputs), dy.dtype)
    (_sums if inputs < outputs else _shares)(rows.matrix(dy), rows.matrix(dx))
    return (dx,)


@jit
def _sums(dy, dx):
    """forward was y[o] = x[o mod I]"""
    inputs = dx.shape[1]
    for r in range(dx.shape[0]):
        for i in range(inputs):
            dx[r, i] = dy[r, i]
        for first in range(inputs, dy.shape[1], inputs):
            for i in range(inputs):
                dx[r, i] += dy[r, first + i]


@jit
def _shares(dy, dx):
    """forward was y[o] = mean of I / O neighbours"""
    share = dx.shape[1] // dy.shape[1]
    for r in range(dy.shape[0]):
        for o in range(dy.shape[1]):
            part = dy[r, o] / dy.dtype.type(share)
            for i in range(share):
                dx[r, o * share + i] = part
