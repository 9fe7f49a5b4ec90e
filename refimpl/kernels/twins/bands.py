"""Twin of `ops.bands`: both bands in one pass, without the four coefficients in memory."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit

Cache = ops.bands.Cache


def forward(
    x: np.ndarray, grid: tuple[int, int], mode: str = "edge", cls: str = "both"
) -> tuple[tuple[np.ndarray, np.ndarray], Cache]:
    """x (B, N, C), N = gh*gw or 1 + gh*gw (class token first) -> (low, high), both like x."""
    if not _fits(x, grid) or mode not in ops.haar.MODES or cls not in ops.bands.CLS:
        return ops.bands.forward(x, grid, mode, cls)
    first = x.shape[1] - grid[0] * grid[1]
    low, high = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    low[:, :first] = x[:, :first]
    high[:, :first] = x[:, :first] if cls == "both" else 0
    _forward(np.ascontiguousarray(x), *grid, mode == "periodic", low, high)
    return (low, high), Cache(grid, mode, cls)


def _fits(x: np.ndarray, grid: tuple[int, int]) -> bool:
    return (
        rows.fits(x) and x.ndim == 3 and min(grid) > 0 and x.shape[1] - grid[0] * grid[1] in (0, 1)
    )


@jit
def _forward(x, height, width, periodic, low, high):
    first, quarter = x.shape[1] - height * width, x.dtype.type(0.25)
    for b in range(x.shape[0]):
        for i in range(height):
            below = i + 1 if i + 1 < height else (0 if periodic else i)
            for j in range(width):
                right = j + 1 if j + 1 < width else (0 if periodic else j)
                here, beside = first + i * width + j, first + i * width + right
                under, across = first + below * width + j, first + below * width + right
                for c in range(x.shape[2]):
                    top = x[b, here, c] + x[b, beside, c]
                    bottom = x[b, under, c] + x[b, across, c]
                    low[b, here, c] = (top + bottom) * quarter
                for c in range(x.shape[2]):
                    top = x[b, here, c] + x[b, beside, c]
                    bottom = x[b, under, c] + x[b, across, c]
                    top_change = x[b, here, c] - x[b, beside, c]
                    bottom_change = x[b, under, c] - x[b, across, c]
                    cH = (top - bottom) * quarter
                    cV = (top_change + bottom_change) * quarter
                    cD = (top_change - bottom_change) * quarter
                    high[b, here, c] = (cH + cV) + cD


def backward(dy: tuple[np.ndarray, np.ndarray], cache: Cache) -> tuple[np.ndarray]:
    """dy = (dlow, dhigh), each (B, N, C) -> (dx (B, N, C),)."""
    dlow, dhigh = dy
    grid, mode, cls = cache
    fits = _fits(dlow, grid) and rows.fits(dlow, (dhigh, dlow.shape))
    if not fits or mode not in ops.haar.MODES:
        return ops.bands.backward(dy, cache)
    first = dlow.shape[1] - grid[0] * grid[1]
    dx = np.empty(dlow.shape, dlow.dtype)
    dx[:, :first] = dlow[:, :first] + dhigh[:, :first] if cls == "both" else dlow[:, :first]
    dlow, dhigh = np.ascontiguousarray(dlow), np.ascontiguousarray(dhigh)
    _backward(dlow, dhigh, *grid, mode == "periodic", dx)
    return (dx,)


@jit
def _backward(dlow, dhigh, height, width, periodic, dx):
    batch, tokens, channels = dx.shape
    first, quarter, zero = tokens - height * width, dx.dtype.type(0.25), dx.dtype.type(0)
    dtop, carried = np.empty((tokens, channels), dx.dtype), np.empty(channels, dx.dtype)
    for b in range(batch):
        # forward was cA, cH = top +- bottom, where bottom is the top of the row below
        for i in range(height):
            above = i - 1 if i > 0 else (height - 1 if periodic else 0)
            for j in range(width):
                here, over = first + i * width + j, first + above * width + j
                for c in range(channels):
                    carried[c] = zero
                if i > 0 or periodic:
                    for c in range(channels):
                        carried[c] = dlow[b, over, c] - dhigh[b, over, c]
                if i == height - 1 and not periodic:
                    for c in range(channels):
                        carried[c] += dlow[b, here, c] - dhigh[b, here, c]
                for c in range(channels):
                    dtop[here, c] = dlow[b, here, c] + dhigh[b, here, c] + carried[c]
        # forward was top, change = x +- the column to the right; the gradient of cV and cD is that
        # of the high band, and so 2 dhigh is that of `change`
        for i in range(height):
            for j in range(width):
                left = j - 1 if j > 0 else (width - 1 if periodic else 0)
                here, before = first + i * width + j, first + i * width + left
                for c in range(channels):
                    carried[c] = zero
                if j > 0 or periodic:
                    for c in range(channels):
                        carried[c] = dtop[before, c] - (dhigh[b, before, c] + dhigh[b, before, c])
                if j == width - 1 and not periodic:
                    for c in range(channels):
                        carried[c] += dtop[here, c] - (dhigh[b, here, c] + dhigh[b, here, c])
                for c in range(channels):
                    dchange = dhigh[b, here, c] + dhigh[b, here, c]
                    dx[b, here, c] = (dtop[here, c] + dchange + carried[c]) * quarter
