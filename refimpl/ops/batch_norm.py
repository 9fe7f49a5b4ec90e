"""Batch normalisation by running statistics, an affine map of every channel [SPEC 6.8].

    y = weight * (x - mean) / sqrt(variance + eps) + bias

What PyTorch's BatchNorm does in evaluation mode. Mean and variance are parameters that no step
moves: their gradient is 0.

>>> one = np.array([1.0])
>>> forward(np.array([[1.0], [7.0]]), 2 * one, one, mean=one, variance=9 * one, eps=0.0)[0][:, 0]
array([1., 5.])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    normalised: np.ndarray  # (..., C) before weight and bias
    std: np.ndarray  # (C,) sqrt(variance + eps)
    weight: np.ndarray  # (C,)


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    eps: float,
) -> tuple[np.ndarray, Cache]:
    """x (..., C), all others (C,), the variance above -eps -> y like x."""
    params = {"weight": weight, "bias": bias, "mean": mean, "variance": variance}
    float_dtype("batch_norm", x=x, **params)
    for name, value in params.items():
        require_shape("batch_norm", name, value, x.shape[-1:])
    std = np.sqrt(variance + eps)
    normalised = (x - mean) / std
    return normalised * weight + bias, Cache(normalised, std, weight)


def backward(
    dy: np.ndarray, cache: Cache
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dy (..., C) -> (dx like dy, dweight, dbias, dmean and dvariance (C,), the last two 0)."""
    normalised, std, weight = cache
    rows = tuple(range(dy.ndim - 1))
    frozen = np.zeros(weight.shape, weight.dtype)
    dweight = (dy * normalised).sum(axis=rows)
    return dy * weight / std, dweight, dy.sum(axis=rows), frozen, frozen.copy()
