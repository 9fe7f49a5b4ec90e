"""One vector an image: its class token, or the mean of its tokens [SPEC 6.3].

>>> x = np.array([[[1.0], [5.0], [6.0]]])
>>> forward(x, "cls")[0], forward(x, "mean")[0]
(array([[1.]]), array([[4.]]))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_choice, require_shape

POOLS = ("cls", "mean")


class Cache(NamedTuple):
    tokens: int  # N
    pool: str


def forward(x: np.ndarray, pool: str) -> tuple[np.ndarray, Cache]:
    """x (B, N, C) -> y (B, C): of the first token, or of all."""
    float_dtype("pool", x=x)
    require_shape("pool", "x", x, (None, None, None))
    require_choice("pool", "pool", pool, POOLS)
    return x[:, 0] if pool == "cls" else x.mean(axis=1), Cache(x.shape[1], pool)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, C) -> (dx (B, N, C),)."""
    dx = np.zeros((len(dy), cache.tokens, dy.shape[1]), dy.dtype)
    if cache.pool == "cls":
        dx[:, 0] = dy
    else:
        dx[:] = dy[:, None] / cache.tokens
    return (dx,)
