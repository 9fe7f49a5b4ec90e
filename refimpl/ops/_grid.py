"""Tokens as a patch grid: shared by `bands` and `neighbours`."""

from __future__ import annotations

import numpy as np

from refimpl.conventions import ShapeError, require_shape


def class_tokens(op: str, x: np.ndarray, grid: tuple[int, int]) -> int:
    """How many of the N tokens of x (B, N, C) precede the grid's: 0 or 1, or ShapeError."""
    require_shape(op, "x", x, (None, None, None))
    first = x.shape[1] - grid[0] * grid[1]
    if first not in (0, 1):
        raise ShapeError(
            f"{op}: x has {x.shape[1]} tokens; "
            f"expected {grid[0]} * {grid[1]}, or one more with a class token"
        )
    return first


def patches(x: np.ndarray, first: int, grid: tuple[int, int]) -> np.ndarray:
    """The patch tokens of x (B, N, C) as (B, gh, gw, C): a view, since an axis is only split."""
    return x[:, first:].reshape(x.shape[0], *grid, x.shape[-1])
