"""LayerScale on a residual branch, a scale and perhaps a shift a channel [SPEC 6.1, 6.8].

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
    has_beta: bool


def forward(
    x: np.ndarray, alpha: np.ndarray, beta: np.ndarray | None = None
) -> tuple[np.ndarray, Cache]:
    """x (..., C), alpha (C,), beta (C,) or None -> y like x."""
    float_dtype("layer_scale", x=x, alpha=alpha, beta=beta)
    require_shape("layer_scale", "alpha", alpha, x.shape[-1:])
    if beta is None:
        return alpha * x, Cache(x, alpha, False)
    require_shape("layer_scale", "beta", beta, x.shape[-1:])
    return alpha * x + beta, Cache(x, alpha, True)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dy (..., C) -> (dx like dy, dalpha (C,), dbeta (C,) or None)."""
    rows = tuple(range(dy.ndim - 1))
    dbeta = dy.sum(axis=rows) if cache.has_beta else None
    return cache.alpha * dy, (dy * cache.x).sum(axis=rows), dbeta
