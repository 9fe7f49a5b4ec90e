"""The contexts of all heads side by side, the inverse of `split_heads` [SPEC 1, 6.1].

>>> forward(np.arange(4.0).reshape(1, 2, 1, 2))[0]       # two heads of d = 2, one token
array([[[0., 1., 2., 3.]]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    heads: int


def forward(x: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (B, heads, N, d) -> (B, N, C)."""
    float_dtype("merge_heads", x=x)
    require_shape("merge_heads", "x", x, (None, None, None, None))
    batch, heads, tokens, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * d), Cache(heads)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, N, C) -> (dx (B, heads, N, d), a view,)."""
    batch, tokens, channels = dy.shape
    dx = dy.reshape(batch, tokens, cache.heads, channels // cache.heads)
    return (dx.transpose(0, 2, 1, 3),)
