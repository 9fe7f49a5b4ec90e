"""Softmax inside shifted windows: keys from the other side of the roll are left out [SPEC 6.7].

>>> scores = np.zeros((2, 1, 4, 4))                      # an image of two windows of 2 x 2
>>> forward(scores, grid=(2, 4), window=2, shift=1)[0][0, 0, 0]   # token 5 of 5, 6, 1, 2
array([0.5, 0.5, 0. , 0. ])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import require_shape
from refimpl.ops import softmax, windows
from refimpl.ops.softmax import Cache


def forward(
    x: np.ndarray, grid: tuple[int, int], window: int, shift: int
) -> tuple[np.ndarray, Cache]:
    """x (B*nW, heads, M*M, M*M) -> y like x, 0 where a key is masked.

    ShapeError where the windows are not those of whole images; else errors as `softmax`.
    """
    require_shape("window_softmax", "x", x, (None, None, window * window, window * window))
    windows.require_whole_images("window_softmax", x, max(grid[0] * grid[1] // window**2, 1))
    return softmax.forward(x, mask(x.shape[0], grid, window, shift))


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B*nW, heads, M*M, M*M) -> (dx like dy,), 0 where a key is masked."""
    return softmax.backward(dy, cache)


def mask(count: int, grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Say which keys a query sees in each of `count` windows, bool (count, 1, M*M, M*M)."""
    seen = windows.mask(grid, window, shift)  # (nW, M*M, M*M)
    return np.tile(seen[:, None], (count // len(seen), 1, 1, 1))
