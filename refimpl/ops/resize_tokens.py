"""A parameter with an entry a token, for images of another size: bicubic, map by map [SPEC 6.3].

Every channel of a position embedding, and every token shift, is a map on the patch grid. The entry
of the class token, where there is one, is kept.

>>> forward(np.array([7.0, 0.0, 8.0]), (1, 2), (1, 4))[0]        # a class token, a grid of 1 x 2
array([ 7.     , -0.84375,  1.8125 ,  6.1875 ,  8.84375])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype
from refimpl.ops import interpolate

Grid = tuple[int, int]
FRONT = 2  # tokens in front of the patches: of the class, and of a distillation


class Cache(NamedTuple):
    grid: Grid
    new_grid: Grid
    interpolate: interpolate.Cache


def forward(x: np.ndarray, grid: Grid, new_grid: Grid) -> tuple[np.ndarray, Cache]:
    """x (1, N, C) or (N,), tokens of a grid -> y (1, N', C) or (N',), tokens of another."""
    float_dtype("resize_tokens", x=x)
    count, patches = x.shape[1] if x.ndim == 3 else x.size, grid[0] * grid[1]
    if x.shape not in ((count,), (1, count, *x.shape[-1:])) or not 0 <= count - patches <= FRONT:
        raise ShapeError(
            f"resize_tokens: x has shape {x.shape}; expected (1, N, any) or (N,), with N the "
            f"{patches} patches of the grid and up to {FRONT} tokens in front"
        )
    first, maps = _split(x, grid)
    resized, cache = interpolate.forward(maps, new_grid)
    return _join(first, resized, x.ndim), Cache(grid, new_grid, cache)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy like y -> (dx like x,)."""
    dfirst, dmaps = _split(dy, cache.new_grid)
    return (_join(dfirst, interpolate.backward(dmaps, cache.interpolate)[0], dy.ndim),)


def _split(x: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The class token's entries (0 or 1, C), and maps (C, gh, gw)."""
    entries = x.reshape(-1, x.shape[-1] if x.ndim == 3 else 1)  # (N, C)
    first = len(entries) - grid[0] * grid[1]
    maps = entries[first:].T.reshape(-1, *grid)
    # BLAS adds in another order where the layout is another
    return entries[:first], np.ascontiguousarray(maps)


def _join(first: np.ndarray, maps: np.ndarray, ndim: int) -> np.ndarray:
    """The inverse of `_split`; the result has `ndim` axes."""
    patches = maps.reshape(len(maps), -1).T
    entries = np.ascontiguousarray(np.concatenate([first, patches]))  # (N, C)
    return entries[None] if ndim == 3 else entries[:, 0]
