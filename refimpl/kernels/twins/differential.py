"""Twin of `ops.differential`: one pass over each token, forward and backward."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit

Cache = ops.differential.Cache


def forward(
    value: np.ndarray, neighbour_mean: np.ndarray, shortcut: np.ndarray, neighbour: np.ndarray
) -> tuple[np.ndarray, Cache]:
    """value, neighbour_mean (B, N, C); shortcut, neighbour (C,) -> y (B, N, C)."""
    cache, channels = Cache(value, neighbour_mean, shortcut, neighbour), value.shape[-1:]
    others = (neighbour_mean, value.shape), (shortcut, channels), (neighbour, channels)
    if value.ndim != 3 or not rows.fits(value, *others):
        return ops.differential.forward(*cache)
    y = np.empty(value.shape, value.dtype)
    value, neighbour_mean = rows.matrix(value), rows.matrix(neighbour_mean)
    _forward(value, neighbour_mean, shortcut, neighbour, rows.matrix(y))
    return y, cache


@jit
def _forward(value, neighbour_mean, shortcut, neighbour, y):
    for r in range(y.shape[0]):
        for c in range(y.shape[1]):
            y[r, c] = shortcut[c] * value[r, c] - neighbour[c] * neighbour_mean[r, c]


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, ...]:
    """dy (B, N, C) -> (dvalue, dneighbour_mean like dy; dshortcut, dneighbour (C,))."""
    value, neighbour_mean, shortcut, neighbour = cache
    if not rows.fits(dy, (value, dy.shape)):
        return ops.differential.backward(dy, cache)
    dvalue, dmean = np.empty(dy.shape, dy.dtype), np.empty(dy.shape, dy.dtype)
    dshortcut, dneighbour = np.zeros((2, dy.shape[-1]), dy.dtype)
    inputs = map(rows.matrix, (dy, value, neighbour_mean))
    outputs = map(rows.matrix, (dvalue, dmean))
    _backward(*inputs, shortcut, neighbour, *outputs, dshortcut, dneighbour)
    return dvalue, dmean, dshortcut, dneighbour


@jit
def _backward(dy, value, mean, shortcut, neighbour, dvalue, dmean, dshortcut, dneighbour):
    for r in range(dy.shape[0]):
        for c in range(dy.shape[1]):
            dvalue[r, c] = shortcut[c] * dy[r, c]
        for c in range(dy.shape[1]):
            dmean[r, c] = -neighbour[c] * dy[r, c]
        for c in range(dy.shape[1]):
            dshortcut[c] += dy[r, c] * value[r, c]
        for c in range(dy.shape[1]):
            dneighbour[c] -= dy[r, c] * mean[r, c]
