"""A learned move of every channel, in front of a sign [SPEC 5, 6.1].

    y = x + move

>>> forward(np.array([[[1.0, 2.0]]]), np.array([0.5, -3.0]))[0]
array([[[ 1.5, -1. ]]])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype, require_shape


def forward(x: np.ndarray, move: np.ndarray) -> tuple[np.ndarray, None]:
    """Add move (C,) to x (B, N, C)."""
    float_dtype("shift", x=x, move=move)
    require_shape("shift", "x", x, (None, None, None))
    require_shape("shift", "move", move, x.shape[-1:])
    return x + move, None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray, np.ndarray]:
    """dy (B, N, C) -> (dx like dy, dmove (C,))."""
    return dy, dy.sum(axis=(0, 1))
