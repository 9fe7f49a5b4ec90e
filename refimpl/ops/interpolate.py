"""Images or grids of another size, along rows and columns one after the other [SPEC 6.3].

    source(i) = (i + 1/2) n / m - 1/2                where output i of m lies among n inputs
    y[i]      = sum_j w(source(i) - j) x[clip(j, 0, n - 1)]        j the 2 or 4 nearest indices

    w(t) = max(0, 1 - |t|)                                         "bilinear"
         = (a+2)|t|^3 - (a+3)|t|^2 + 1          for |t| <= 1       "bicubic", a = -3/4
         = a|t|^3 - 5a|t|^2 + 8a|t| - 4a        for 1 < |t| <= 2

So the border's entry stands for all beyond it, the corners of both images coincide, and nothing is
smoothed before it is made smaller: torch's `interpolate` with align_corners=False, antialias=False.
Each axis is one product with a small matrix, whose entries are computed in float64 and rounded once
to the dtype of x, in which BLAS adds. An axis that keeps its length is left alone.

>>> x = np.array([[0.0, 8.0]])
>>> forward(x, (1, 4))[0], forward(x, (1, 4), "bilinear")[0]
(array([[-0.84375,  1.8125 ,  6.1875 ,  8.84375]]), array([[0., 2., 6., 8.]]))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_choice

MODES = ("bicubic", "bilinear")
A = -0.75


class Cache(NamedTuple):
    rows: np.ndarray | None  # (h, H) weights; None where the axis keeps its length
    columns: np.ndarray | None  # (w, W)


def forward(
    x: np.ndarray, size: tuple[int, int], mode: str = "bicubic"
) -> tuple[np.ndarray, Cache]:
    """x (..., H, W), size (h, w) -> y (..., h, w). x itself where it has that size."""
    dtype = float_dtype("interpolate", x=x)
    require_choice("interpolate", "mode", mode, MODES)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(f"interpolate: x has shape {x.shape}; expected (..., rows, columns)")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"interpolate: size is {size}; expected rows and columns, at least 1 each")
    rows, columns = (
        None if n == m else _weights(n, m, mode).astype(dtype)
        for n, m in zip(x.shape[-2:], size, strict=True)
    )
    y = x if rows is None else rows @ x  # (..., h, W)
    return y if columns is None else y @ columns.T, Cache(rows, columns)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (..., h, w) -> (dx (..., H, W),)."""
    rows, columns = cache
    dx = dy if columns is None else dy @ columns  # (..., h, W)
    return (dx if rows is None else rows.T @ dx,)


def between(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two inputs that each output of "bilinear" lies between, and the share of the second.

    int64 (outputs,) twice and float64 (outputs,): for whoever has a part of the inputs at a time.

    >>> between(4, 2)
    (array([0, 2]), array([1, 3]), array([0.5, 0.5]))
    """
    source, before = _sources(inputs, outputs)
    first, second = (np.clip(before + offset, 0, inputs - 1) for offset in (0, 1))
    return first, second, source - before


def _sources(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each output lies among the inputs, float64 (outputs,), and the index before it."""
    source = (np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5
    return source, np.floor(source).astype(np.int64)


def _weights(inputs: int, outputs: int, mode: str) -> np.ndarray:
    """(outputs, inputs), float64: what of each input is in each output. Rows sum to 1."""
    source, before = _sources(inputs, outputs)
    weights = np.zeros((outputs, inputs))
    for offset in (-1, 0, 1, 2) if mode == "bicubic" else (0, 1):
        distance = np.abs(source - (before + offset))
        share = _cubic(distance) if mode == "bicubic" else 1 - distance
        # beyond the border several offsets are clipped to one index, so their shares add up
        weights[np.arange(outputs), np.clip(before + offset, 0, inputs - 1)] += share
    return weights


def _cubic(t: np.ndarray) -> np.ndarray:
    near = ((A + 2) * t - (A + 3)) * t**2 + 1
    far = ((A * t - 5 * A) * t + 8 * A) * t - 4 * A
    return np.where(t <= 1, near, far)
