"""LayerScale on a residual branch, one scale and one shift a channel [SPEC 6.1].

    y = alpha * x + beta

>>> forward(np.array([[2.0, 3.0]]), np.array([0.1, 10.0]), np.array([0.0, 1.0]))[0]
array([[ 0.2, 31. ]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    x: np.ndarray  # (..., C)
    alpha: np.ndarray  # (C,)


def forward(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (..., C), alpha and beta (C,) -> y like x."""
    float_dtype("layer_scale", x=x, alpha=alpha, beta=beta)
    require_shape("layer_scale", "alpha", alpha, x.shape[-1:])
    require_shape("layer_scale", "beta", beta, x.shape[-1:])
    return alpha * x + beta, Cache(x, alpha)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (..., C) -> (dx like dy, dalpha (C,), dbeta (C,))."""
    rows = tuple(range(dy.ndim - 1))
    return cache.alpha * dy, (dy * cache.x).sum(axis=rows), dy.sum(axis=rows)
