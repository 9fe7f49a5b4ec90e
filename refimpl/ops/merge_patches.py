"""Patch merging's first half: the channels of 2 x 2 neighbours side by side [SPEC 6.7].

In Swin's order, (row, column): (0, 0), (1, 0), (0, 1), (1, 1). A permutation: its backward is its
inverse.

>>> forward(np.arange(8.0).reshape(1, 8, 1), grid=(2, 4))[0][0]
array([[0., 4., 1., 5.],
       [2., 6., 3., 7.]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_shape


class Cache(NamedTuple):
    grid: tuple[int, int]  # gh, gw, of x


def forward(x: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, Cache]:
    """x (B, gh*gw, C) -> y (B, gh*gw / 4, 4C)."""
    float_dtype("merge_patches", x=x)
    gh, gw = grid
    if gh % 2 or gw % 2:
        raise ShapeError(f"merge_patches: a grid of {gh} x {gw}; expected even sides")
    require_shape("merge_patches", "x", x, (None, gh * gw, None))
    batch, tokens, channels = x.shape
    # (B, gh / 2, row, gw / 2, column, C) -> (B, gh / 2, gw / 2, column, row, C)
    blocks = x.reshape(batch, gh // 2, 2, gw // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
    return blocks.reshape(batch, tokens // 4, 4 * channels), Cache(grid)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, gh*gw / 4, 4C) -> (dx (B, gh*gw, C),)."""
    gh, gw = cache.grid
    batch, _, channels = dy.shape
    blocks = dy.reshape(batch, gh // 2, gw // 2, 2, 2, channels // 4)
    dx = blocks.transpose(0, 1, 4, 2, 3, 5).reshape(batch, gh * gw, channels // 4)
    return (dx,)
