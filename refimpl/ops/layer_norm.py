"""Layer normalisation over the last axis, biased variance, two passes [SPEC 6.3].

    y = weight * (x - mean) / sqrt(mean((x - mean)^2) + eps) + bias

Means are pairwise sums over the row, in the dtype of x.

>>> forward(np.array([[1.0, 3.0]]), np.array([1.0, 2.0]), np.array([0.0, 0.5]), eps=0.0)[0]
array([[-1. ,  2.5]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    normalised: np.ndarray  # (..., C) before weight and bias
    std: np.ndarray  # (..., 1) sqrt(variance + eps)
    weight: np.ndarray  # (C,)


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> tuple[np.ndarray, Cache]:
    """x (..., C), weight and bias (C,) -> y like x."""
    float_dtype("layer_norm", x=x, weight=weight, bias=bias)
    require_shape("layer_norm", "weight", weight, x.shape[-1:])
    require_shape("layer_norm", "bias", bias, x.shape[-1:])
    normalised = x - x.mean(axis=-1, keepdims=True)
    std = np.sqrt(np.square(normalised).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
    normalised /= std
    y = normalised * weight
    y += bias
    return y, Cache(normalised, std, weight)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (..., C) -> (dx like dy, dweight (C,), dbias (C,))."""
    normalised, std, weight = cache
    rows = tuple(range(dy.ndim - 1))
    dbias = dy.sum(axis=rows)
    dweight = (dy * normalised).sum(axis=rows)
    # forward was normalised = centred / std: dx loses its mean (centring) and its part along
    # `normalised` (division by std, which moves with x)
    dnormalised = dy * weight
    along = (dnormalised * normalised).mean(axis=-1, keepdims=True)
    dx = dnormalised - dnormalised.mean(axis=-1, keepdims=True)
    dx -= normalised * along
    dx /= std
    return dx, dweight, dbias
