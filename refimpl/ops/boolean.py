"""Boolean attention probabilities: the elastic binarizer of BiT, for values >= 0 [SPEC 2].

    alpha' = max(alpha, 1e-5)        q = x / alpha'        y = alpha' * clip(round(q), 0, 1)

Rounding is half to even, so the bit is 1 where q > 1/2, strictly, and 0 at q = 1/2 itself.
The gradient passes where 0 <= q <= 1 (`inside`); alpha also hears from q > 1 (`above`):

    dx = dy * inside          dalpha = sum dy * (inside * (round(q) - q) + above)

and dalpha is 0 where alpha < 1e-5: there the maximum holds it.

>>> forward(np.array([0.1, 0.2, 0.21, 0.9]), np.array(0.4))[0]
array([0. , 0. , 0.4, 0.4])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_finite

ALPHA_MIN = 1e-5


class Cache(NamedTuple):
    ratio: np.ndarray  # (B, heads, N, N) q
    bit: np.ndarray  # (B, heads, N, N) bool, q > 1/2
    alpha: np.ndarray  # () or (heads, 1, 1) as given


def threshold(x: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q = x / alpha' and the step alpha', both before any rounding."""
    float_dtype("boolean", x=x, alpha=alpha)
    require_finite("boolean", "x", x)
    require_finite("boolean", "alpha", alpha)
    _check_broadcast(x, alpha)
    return x / step_of(alpha), step_of(alpha)


def step_of(alpha: np.ndarray) -> np.ndarray:
    """alpha' = max(alpha, 1e-5), in the dtype of alpha."""
    return np.maximum(alpha, alpha.dtype.type(ALPHA_MIN))


def forward(x: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (B, heads, N, N), alpha () or (heads, 1, 1) -> y like x, of 0 and alpha'.

    Any x works whose shape alpha broadcasts to. NonFiniteError on NaN or infinity.
    """
    ratio, step = threshold(x, alpha)
    bit = ratio > 0.5
    return step * bit, Cache(ratio, bit, alpha)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """dy (B, heads, N, N) -> (dx like dy, dalpha like alpha)."""
    ratio, bit, alpha = cache
    inside = (ratio >= 0) & (ratio <= 1)
    dx = dy * inside
    # round(q) is the bit wherever q is inside
    dstep = dx * (bit - ratio) + dy * (ratio > 1)
    free = alpha >= dy.dtype.type(ALPHA_MIN)
    return dx, np.asarray(_sum_like(dstep, alpha) * free)


def _check_broadcast(x: np.ndarray, alpha: np.ndarray) -> None:
    sizes = zip(alpha.shape[::-1], x.shape[::-1], strict=False)
    if alpha.ndim > x.ndim or any(a not in (1, n) for a, n in sizes):
        raise ShapeError(f"boolean: alpha has shape {alpha.shape}; expected () or (heads, 1, 1)")


def _sum_like(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Sum over the axes along which ``target`` was broadcast; the result has its shape."""
    shape = (1,) * (terms.ndim - target.ndim) + target.shape
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return terms.sum(axis=axes, keepdims=True).reshape(target.shape)
