"""Real linear map y = x W^T + b, PyTorch's layout of the weight.

NumPy multiplies a batch image by image. One product of all rows would be faster, but with some
kernels of BLAS the last bits of an image would depend on its batch, and signs hang on them.

>>> forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))[0]
array([[11., 17., 23.]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    x: np.ndarray  # (..., I) for dweight
    weight: np.ndarray  # (O, I) for dx
    has_bias: bool


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> tuple[np.ndarray, Cache]:
    """x (..., I), weight (O, I), bias (O,) or None -> y (..., O)."""
    float_dtype("linear", x=x, weight=weight, bias=bias)
    require_shape("linear", "weight", weight, (None, *x.shape[-1:]))
    y = x @ weight.T  # (..., O)
    if bias is not None:
        require_shape("linear", "bias", bias, (weight.shape[0],))
        y += bias
    return y, Cache(x, weight, bias is not None)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dy (..., O) -> (dx (..., I), dweight (O, I), dbias (O,) or None)."""
    x, weight, has_bias = cache
    rows = dy.reshape(-1, dy.shape[-1])  # (K, O): every leading axis is a sum in dweight
    dbias = rows.sum(axis=0) if has_bias else None
    dweight = rows.T @ x.reshape(-1, x.shape[-1])
    dx = dy @ weight
    return dx, dweight, dbias
