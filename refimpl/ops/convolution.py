"""Convolution of 3 x 3 tokens on their grid, with zeros beyond it [SPEC 10].

    y[i, j] = sum over r, c in 0, 1, 2 of x[i + r - 1, j + c - 1] W[:, :, r, c]^T + b

PyTorch's orientation and layout of the weight: the kernel is not turned around. Nine products of
matrices in the dtype of x, added row by row of the kernel.

>>> x = np.array([[[1.0], [10.0], [100.0], [1000.0]]])  # a grid of 2 x 2
>>> weight = np.arange(9.0).reshape(1, 1, 3, 3)
>>> forward(x, weight, np.array([0.5]), grid=(2, 2))[0][0, :, 0]
array([8754.5, 7643.5, 5421.5, 4310.5])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape

PLACES = [(r, c) for r in range(3) for c in range(3)]  # of a kernel, rows and columns


class Cache(NamedTuple):
    x: np.ndarray  # (B, gh*gw, I) for dweight
    weight: np.ndarray  # (O, I, 3, 3) for dx
    grid: tuple[int, int]  # gh, gw


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, grid: tuple[int, int]
) -> tuple[np.ndarray, Cache]:
    """x (B, gh*gw, I), weight (O, I, 3, 3), bias (O,) -> y (B, gh*gw, O)."""
    float_dtype("convolution", x=x, weight=weight, bias=bias)
    require_shape("convolution", "weight", weight, (None, None, 3, 3))
    require_shape("convolution", "bias", bias, weight.shape[:1])
    require_shape("convolution", "x", x, (None, grid[0] * grid[1], weight.shape[1]))
    padded = _padded(x, grid)
    y = sum(_seen(padded, r, c) @ weight[:, :, r, c].T for r, c in PLACES)  # (B, gh*gw, O)
    y += bias
    return y, Cache(x, weight, grid)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, gh*gw, O) -> (dx (B, gh*gw, I), dweight (O, I, 3, 3), dbias (O,))."""
    x, weight, grid = cache
    rows, padded, dpadded = _rows(dy), _padded(x, grid), _padded(dy, grid)
    dkernel = [rows.T @ _rows(_seen(padded, r, c)) for r, c in PLACES]  # nine of (O, I)
    dweight = np.stack(dkernel, axis=-1).reshape(*weight.shape)
    # forward was y[i, j] += x[i + r - 1, j + c - 1] W^T, so x[i, j] is seen from the other side
    dx = sum(_seen(dpadded, 2 - r, 2 - c) @ weight[:, :, r, c] for r, c in PLACES)
    return dx, dweight, rows.sum(axis=0)


def _padded(x: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(B, gh*gw, I) -> (B, gh + 2, gw + 2, I)."""
    return np.pad(x.reshape(x.shape[0], *grid, x.shape[-1]), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _seen(padded: np.ndarray, r: int, c: int) -> np.ndarray:
    """What every token sees at place (r, c) of the kernel: (B, gh*gw, I)."""
    batch, height, width, channels = padded.shape
    gh, gw = height - 2, width - 2
    return padded[:, r : r + gh, c : c + gw].reshape(batch, gh * gw, channels)


def _rows(x: np.ndarray) -> np.ndarray:
    """(B, N, C) -> (B N, C)"""
    return x.reshape(-1, x.shape[-1])
