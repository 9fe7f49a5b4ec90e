"""Channels of tokens handed to the heads of attention: channel c belongs to head c // d [SPEC 1].

Queries and keys are (B, heads, N, d); values, transposed, (B, heads, d, N): the last axis is the
one that a product reduces.

>>> forward(np.arange(8.0).reshape(1, 2, 4), heads=2)[0][0, 1]
array([[2., 3.],
       [6., 7.]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_shape


class Cache(NamedTuple):
    transposed: bool


def forward(x: np.ndarray, heads: int, transposed: bool = False) -> tuple[np.ndarray, Cache]:
    """x (B, N, C) -> (B, heads, N, d), or transposed (B, heads, d, N); a view."""
    float_dtype("split_heads", x=x)
    require_shape("split_heads", "x", x, (None, None, None))
    batch, tokens, channels = x.shape
    if channels % heads:
        raise ShapeError(f"split_heads: x has {channels} channels; expected a multiple of {heads}")
    y = x.reshape(batch, tokens, heads, channels // heads)
    return y.transpose(0, 2, 3, 1) if transposed else y.transpose(0, 2, 1, 3), Cache(transposed)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy like y -> (dx (B, N, C),)."""
    dy = dy.swapaxes(-1, -2) if cache.transposed else dy
    batch, heads, tokens, d = dy.shape
    return (dy.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * d),)
