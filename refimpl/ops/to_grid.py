"""Tokens as images, every channel a map of the patch grid, row by row [SPEC 10].

>>> forward(np.arange(6.0).reshape(1, 6, 1), grid=(2, 3))[0][0, 0]
array([[0., 1., 2.],
       [3., 4., 5.]])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype, require_shape


def forward(x: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, None]:
    """x (B, gh*gw, C) -> y (B, C, gh, gw)."""
    float_dtype("to_grid", x=x)
    require_shape("to_grid", "x", x, (None, grid[0] * grid[1], None))
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], *grid), None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray]:
    """dy (B, C, gh, gw) -> (dx (B, gh*gw, C),)."""
    batch, channels, height, width = dy.shape
    return (dy.reshape(batch, channels, height * width).swapaxes(1, 2),)
