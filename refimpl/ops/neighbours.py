"""Mean of the eight neighbours on the patch grid [SPEC 6.2, R2].

    mean[i, j] = sum of x over the neighbours of (i, j) that exist / their number     "existing"
               = sum of x over the neighbours of (i, j) that exist / 8                "eight"

A corner has 3 neighbours, an edge 5. The class token, and the only token of a 1 x 1 grid, have
none: their mean is 0. Terms are added in row-major order of the neighbours, in the dtype of x.

>>> x = np.array([[[7.0], [1.0], [2.0], [3.0], [4.0]]])  # a class token and a grid of 2 x 2
>>> forward(x, grid=(2, 2))[0][0, :, 0]                  # 3 = (2 + 3 + 4) / 3
array([0.        , 3.        , 2.66666667, 2.33333333, 2.        ])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_choice
from refimpl.ops import _grid

BORDERS = ("existing", "eight")
OFFSETS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


class Cache(NamedTuple):
    grid: tuple[int, int]  # gh, gw
    divisor: np.ndarray  # (gh, gw, 1) number of neighbours, or 8


def forward(
    x: np.ndarray, grid: tuple[int, int], border: str = "existing"
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C), N = gh*gw or 1 + gh*gw (class token first) -> mean (B, N, C)."""
    dtype = float_dtype("neighbours", x=x)
    require_choice("neighbours", "border", border, BORDERS)
    first = _grid.class_tokens("neighbours", x, grid)
    mean = np.zeros(x.shape, dtype)
    patches, total = _grid.patches(x, first, grid), _grid.patches(mean, first, grid)
    count = np.zeros((*grid, 1), dtype)
    for token, neighbour in _pairs(grid):
        total[:, token[0], token[1]] += patches[:, neighbour[0], neighbour[1]]
        count[token] += 1
    divisor = np.maximum(count, 1) if border == "existing" else np.full_like(count, 8)
    total /= divisor
    return mean, Cache(grid, divisor)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, N, C) -> (dx (B, N, C),)."""
    grid, divisor = cache
    first = _grid.class_tokens("neighbours", dy, grid)
    dx = np.zeros(dy.shape, dy.dtype)
    dpatches, dtotal = _grid.patches(dx, first, grid), _grid.patches(dy, first, grid) / divisor
    for token, neighbour in _pairs(grid):
        # forward was total[token] += x[neighbour]
        dpatches[:, neighbour[0], neighbour[1]] += dtotal[:, token[0], token[1]]
    return (dx,)


def _pairs(grid: tuple[int, int]) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """For each offset: rows and columns of the tokens that have this neighbour, and of it."""
    for offset in OFFSETS:
        token = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, grid, strict=True))
        neighbour = tuple(
            slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, grid, strict=True)
        )
        yield token, neighbour
