"""Twin of `ops.neighbours`: token by token, so that the rows of its neighbours are at hand."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit

Cache = ops.neighbours.Cache


def forward(
    x: np.ndarray, grid: tuple[int, int], border: str = "existing"
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C), N = gh*gw or 1 + gh*gw (class token first) -> mean (B, N, C)."""
    if not _fits(x, grid) or border not in ops.neighbours.BORDERS:
        return ops.neighbours.forward(x, grid, border)
    divisor = divisor_of(grid, border).astype(x.dtype)
    mean = np.zeros(x.shape, x.dtype)
    add_neighbours(np.ascontiguousarray(x), divisor, mean)
    return mean, Cache(grid, divisor[:, :, None])


def _fits(x: np.ndarray, grid: tuple[int, int]) -> bool:
    return rows.fits(x) and x.ndim == 3 and x.shape[1] - grid[0] * grid[1] in (0, 1)


def divisor_of(grid: tuple[int, int], border: str) -> np.ndarray:
    """Neighbours of each place in the grid (gh, gw); 1 where there is none, or 8 everywhere."""
    along = [3 - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in grid]
    count = np.maximum(np.outer(*along) - 1, 1)
    return count if border == "existing" else np.full_like(count, 8)


@jit
def add_neighbours(x, divisor, mean):
    """The mean of the neighbours into `mean`, which is 0."""
    rows, columns = divisor.shape
    first = x.shape[1] - rows * columns
    for b in range(x.shape[0]):
        for i in range(rows):
            for j in range(columns):
                token = first + i * columns + j
                for k in range(max(i - 1, 0), min(i + 2, rows)):
                    for m in range(max(j - 1, 0), min(j + 2, columns)):
                        other = first + k * columns + m
                        if other != token:
                            for c in range(x.shape[2]):
                                mean[b, token, c] += x[b, other, c]
                for c in range(x.shape[2]):
                    mean[b, token, c] /= divisor[i, j]


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (B, N, C) -> (dx (B, N, C),)."""
    grid, divisor = cache
    if not _fits(dy, grid) or divisor.dtype != dy.dtype:
        return ops.neighbours.backward(dy, cache)
    dx = np.zeros(dy.shape, dy.dtype)
    add_back(np.ascontiguousarray(dy), divisor[:, :, 0], dx)
    return (dx,)


@jit
def add_back(dy, divisor, dx):
    """Add the gradient of x to dx."""
    rows, columns = divisor.shape
    first, dtotal = dy.shape[1] - rows * columns, np.empty(dy.shape[1:], dy.dtype)
    for b in range(dy.shape[0]):
        for i in range(rows):
            for j in range(columns):
                token = first + i * columns + j
                for c in range(dy.shape[2]):
                    dtotal[token, c] = dy[b, token, c] / divisor[i, j]
        # forward was total[token] += x[other], for every other beside it. The original goes
        # through the directions, so what reaches one token comes from its last neighbour first
        for i in range(rows):
            for j in range(columns):
                other = first + i * columns + j
                for k in range(min(i + 1, rows - 1), max(i - 1, 0) - 1, -1):
                    for m in range(min(j + 1, columns - 1), max(j - 1, 0) - 1, -1):
                        token = first + k * columns + m
                        if token != other:
                            for c in range(dy.shape[2]):
                                dx[b, other, c] += dtotal[token, c]
