"""Mean over neighbours along rows or columns of the patch grid [SPEC 6.8].

    axis 0:   y[i, j] = sum over k = -n … n of x[i + k, j] / side,     side = 2n + 1
    axis 1:   y[i, j] = sum over k = -n … n of x[i, j + k] / side

x is 0 beyond the grid, and these zeros count in the mean. Terms are added in the order of k.

>>> x = np.array([[[3.0], [6.0], [9.0], [12.0]]])               # a grid of 2 x 2
>>> forward(x, grid=(2, 2), side=3, axis=0)[0][0, :, 0]         # (3 + 9) / 3, (6 + 12) / 3, …
array([4., 6., 4., 6.])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ConfigError, float_dtype, require_choice, require_shape


class Cache(NamedTuple):
    grid: tuple[int, int]  # gh, gw
    side: int
    axis: int


def forward(
    x: np.ndarray, grid: tuple[int, int], side: int, axis: int
) -> tuple[np.ndarray, Cache]:
    """x (B, gh*gw, C), without a class token -> y like x; `side` is odd."""
    float_dtype("box", x=x)
    require_choice("box", "axis", axis, (0, 1))
    require_shape("box", "x", x, (None, grid[0] * grid[1], None))
    if side < 1 or side % 2 == 0:
        raise ConfigError(f"box: side is {side}; expected an odd number of at least 1")
    return _mean(x, grid, side, axis), Cache(grid, side, axis)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, gh*gw, C) -> (dx like dy,)."""
    # i is among the neighbours of j where j is among those of i
    return (_mean(dy, *cache),)


def _mean(x: np.ndarray, grid: tuple[int, int], side: int, axis: int) -> np.ndarray:
    shape = [x.shape[0], *grid, x.shape[-1]]
    length = shape[1 + axis]
    edge = np.zeros([side // 2 if a == 1 + axis else n for a, n in enumerate(shape)], x.dtype)
    padded = np.concatenate([edge, x.reshape(*shape), edge], axis=1 + axis)
    before = (slice(None),) * (1 + axis)
    total = padded[(*before, slice(0, length))]
    for k in range(1, side):
        total = total + padded[(*before, slice(k, k + length))]
    return (total / float(side)).reshape(*x.shape)
