"""Relative position bias of windowed attention: one learned number a head and offset [SPEC 6.7].

    y[…, i, j] = x[…, i, j] + table[(dr + M - 1) (2M - 1) + (dc + M - 1), head]

with dr = row of query i - row of key j inside their window of M x M tokens, dc likewise.

>>> table = np.arange(9.0).reshape(9, 1)                 # M = 2, one head
>>> forward(np.zeros((1, 1, 4, 4)), table)[0][0, 0, 0]   # of the first query: no row below it
array([4., 3., 1., 0.])
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_shape


class Cache(NamedTuple):
    window: int  # M


def forward(x: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (B', heads, M*M, M*M), table ((2M - 1)^2, heads) -> y like x."""
    float_dtype("position_bias", x=x, table=table)
    require_shape("position_bias", "x", x, (None, None, *2 * x.shape[-1:]))
    window = math.isqrt(x.shape[-1])
    if window**2 != x.shape[-1]:
        raise ShapeError(f"position_bias: x has {x.shape[-1]} keys; expected a square, M * M")
    require_shape("position_bias", "table", table, ((2 * window - 1) ** 2, x.shape[1]))
    return x + table[offsets(window)].transpose(2, 0, 1), Cache(window)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """dy (B', heads, M*M, M*M) -> (dx like dy, dtable): the table's rows are summed over pairs."""
    rows = np.arange((2 * cache.window - 1) ** 2)
    pairs = offsets(cache.window).reshape(-1, 1) == rows  # one-hot, (M*M * M*M, rows)
    total = dy.sum(axis=0)  # (heads, M*M, M*M)
    return dy, (total.reshape(total.shape[0], -1) @ pairs).T


def offsets(window: int) -> np.ndarray:
    """(M*M, M*M): the row of the table for the offset of query i from key j."""
    rows, columns = (axis.reshape(-1) for axis in np.indices((window, window)))
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right
