"""Maps of the patch grid as tokens again, the inverse of `to_grid` [SPEC 10].

>>> forward(np.arange(4.0).reshape(1, 2, 1, 2))[0][0]    # two channels of a grid of 1 x 2
array([[0., 2.],
       [1., 3.]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape
from refimpl.ops import to_grid


class Cache(NamedTuple):
    grid: tuple[int, int]  # gh, gw


def forward(x: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (B, C, gh, gw) -> y (B, gh*gw, C)."""
    float_dtype("from_grid", x=x)
    require_shape("from_grid", "x", x, (None, None, None, None))
    return to_grid.backward(x, None)[0], Cache(x.shape[2:])


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, gh*gw, C) -> (dx (B, C, gh, gw),)."""
    return (to_grid.forward(dy, cache.grid)[0],)
