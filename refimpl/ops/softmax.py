"""Softmax over the last axis, shifted by the row's maximum, over what a mask leaves [SPEC 6.7].

>>> forward(np.array([[1000.0, 1000.0 + np.log(3.0)]]))[0]
array([[0.25, 0.75]])
>>> forward(np.array([[1.0, 800.0, 1.0]]), np.array([True, False, True]))[0]
array([[0.5, 0. , 0.5]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_finite


class Cache(NamedTuple):
    y: np.ndarray  # (..., N)


def forward(x: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, Cache]:
    """x (..., N) -> y like x, rows sum to 1. NonFiniteError on NaN or infinity; N at least 1.

    mask: bool, broadcasts to x; where it is False y is exactly 0 and the others share the sum.
    ShapeError where it leaves nothing of a row.
    """
    float_dtype("softmax", x=x)
    require_finite("softmax", "x", x)
    if 0 in x.shape[-1:]:
        raise ShapeError(f"softmax: x has shape {x.shape}; expected at least one value in a row")
    if mask is None:
        y = np.exp(x - x.max(axis=-1, keepdims=True))
    else:
        _check_mask(mask)
        # the row's minimum is below what is left: neither the maximum nor an overflow
        kept = np.where(mask, x, x.min(axis=-1, keepdims=True))
        y = np.exp(kept - kept.max(axis=-1, keepdims=True)) * mask
    y /= y.sum(axis=-1, keepdims=True)
    return y, Cache(y)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (..., N) -> (dx like dy,), 0 where y is masked."""
    dx = dy - (dy * cache.y).sum(axis=-1, keepdims=True)
    dx *= cache.y
    return (dx,)


def _check_mask(mask: np.ndarray) -> None:
    if not mask.any(axis=-1).all():
        raise ShapeError("softmax: the mask leaves nothing of a row; expected at least one True")
