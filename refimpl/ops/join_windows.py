"""Windows put back on the token grid and rolled back: the inverse of `windows` [SPEC 6.7].

>>> forward(np.arange(8.0).reshape(2, 4, 1), grid=(2, 4), window=2)[0][0, :, 0]
array([0., 1., 4., 5., 2., 3., 6., 7.])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype, require_shape
from refimpl.ops import windows
from refimpl.ops.windows import Cache


def forward(
    x: np.ndarray, grid: tuple[int, int], window: int, shift: int = 0
) -> tuple[np.ndarray, Cache]:
    """x (B*nW, M*M, C) -> y (B, gh*gw, C)."""
    float_dtype("join_windows", x=x)
    require_shape("join_windows", "x", x, (None, window * window, None))
    cache = Cache(grid, window, shift)
    windows.require_whole_images("join_windows", x, max(grid[0] * grid[1] // window**2, 1))
    return windows.backward(x, cache)[0], cache


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, gh*gw, C) -> (dx (B*nW, M*M, C),)."""
    return (windows.forward(dy, *cache)[0],)
