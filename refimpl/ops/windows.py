"""Windows of the token grid: rolled, then cut, and what the roll must not mix [SPEC 6.7].

The grid is rolled by -shift, so that its first rows and columns become the last, and cut into
windows of M x M tokens. Windows lie row by row, and so do the tokens of each; they stand in the
place of images, those of image 0 first. A permutation: its backward is its inverse.

>>> x = np.arange(8.0).reshape(1, 8, 1)                  # a grid of 2 x 4, two windows
>>> forward(x, grid=(2, 4), window=2)[0][:, :, 0]
array([[0., 1., 4., 5.],
       [2., 3., 6., 7.]])
>>> forward(x, grid=(2, 4), window=2, shift=1)[0][1, :, 0]
array([7., 4., 3., 0.])
>>> mask((2, 4), window=2, shift=1)[1]                   # 7, 4, 3 and 0 are neighbours by the roll
array([[ True, False, False, False],
       [False,  True, False, False],
       [False, False,  True, False],
       [False, False, False,  True]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_shape


class Cache(NamedTuple):
    grid: tuple[int, int]  # gh, gw
    window: int  # M
    shift: int


def forward(
    x: np.ndarray, grid: tuple[int, int], window: int, shift: int = 0
) -> tuple[np.ndarray, Cache]:
    """x (B, gh*gw, C) -> windows (B*nW, M*M, C), nW the number of windows of an image."""
    float_dtype("windows", x=x)
    require_shape("windows", "x", x, (None, grid[0] * grid[1], None))
    cache = Cache(grid, window, shift)
    return x[:, _order(cache)].reshape(-1, window * window, x.shape[-1]), cache


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B*nW, M*M, C) -> (dx (B, gh*gw, C),)."""
    order = _order(cache)
    return (dy.reshape(-1, len(order), dy.shape[-1])[:, np.argsort(order)],)


def mask(grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """bool (nW, M*M, M*M): whether a query may see a key, both from the same side of the roll."""
    sides = []
    for axis, n in enumerate(grid):
        wrapped = np.arange(n) < shift  # these come from the other side
        side = _cut(np.broadcast_to(np.expand_dims(wrapped, 1 - axis), grid), window, shift)
        sides.append(side[:, :, None] == side[:, None, :])
    return sides[0] & sides[1]


def require_whole_images(op: str, x: np.ndarray, each: int) -> None:
    """Raise ShapeError unless axis 0 of x holds all windows, `each` an image, of its images."""
    if x.shape[0] % each:
        raise ShapeError(
            f"{op}: x has shape {x.shape}; expected {each} windows for each image on axis 0"
        )


def _order(cache: Cache) -> np.ndarray:
    """(gh*gw,) the token at each place of an image's windows."""
    gh, gw = cache.grid
    return _cut(np.arange(gh * gw).reshape(gh, gw), cache.window, cache.shift).reshape(-1)


def _cut(grid: np.ndarray, window: int, shift: int) -> np.ndarray:
    """(gh, gw) -> (nW, M*M), rolled and cut."""
    gh, gw = grid.shape
    if min(gh, gw, window) < 1 or gh % window or gw % window or not 0 <= shift < window:
        raise ShapeError(
            f"windows: a grid of {gh} x {gw}, window {window}, shift {shift}; "
            "expected a grid of whole windows and a shift within one"
        )
    rolled = np.roll(grid, (-shift, -shift), axis=(0, 1))
    # (gh / M, M, gw / M, M) -> (gh / M, gw / M, M, M)
    blocks = rolled.reshape(gh // window, window, gw // window, window).swapaxes(1, 2)
    return blocks.reshape(-1, window * window)
