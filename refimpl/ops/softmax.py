"""Softmax over the last axis, shifted by the row's maximum.

>>> forward(np.array([[1000.0, 1000.0 + np.log(3.0)]]))[0]
array([[0.25, 0.75]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_finite


class Cache(NamedTuple):
    y: np.ndarray  # (..., N)


def forward(x: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (..., N) -> y like x, rows sum to 1. NonFiniteError on NaN or infinity."""
    float_dtype("softmax", x=x)
    require_finite("softmax", "x", x)
    y = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y, Cache(y)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (..., N) -> (dx like dy,)."""
    dx = dy - (dy * cache.y).sum(axis=-1, keepdims=True)
    dx *= cache.y
    return (dx,)
