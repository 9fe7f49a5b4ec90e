"""Batched product a b^T: the last axis of both is the one that is reduced [SPEC 1].

Queries (B, heads, N, d) times keys (B, heads, N, d) give scores; probabilities (B, heads, N, N)
times values stored as (B, heads, d, N) give the context. With signs (or bits) as inputs the
result is a whole number, exact in float32 up to K = 2^24.

>>> forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]))[0]
array([[11., 17.]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype


class Cache(NamedTuple):
    a: np.ndarray  # (..., M, K) for db
    b: np.ndarray  # (..., N, K) for da


def forward(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Cache]:
    """a (..., M, K), b (..., N, K) with equal leading axes -> y (..., M, N)."""
    float_dtype("matmul", a=a, b=b)
    if min(a.ndim, b.ndim) < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1:] != b.shape[-1:]:
        raise ShapeError(
            f"matmul: a has shape {a.shape}, b {b.shape}; expected equal leading and last axes"
        )
    return a @ b.swapaxes(-1, -2), Cache(a, b)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """dy (..., M, N) -> (da (..., M, K), db (..., N, K))."""
    return dy @ cache.b, dy.swapaxes(-1, -2) @ cache.a
