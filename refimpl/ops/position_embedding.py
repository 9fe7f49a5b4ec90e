"""A learned vector for every place, added to the tokens [SPEC 6.3].

>>> forward(np.array([[[5.0], [6.0]]]), np.array([[[0.5], [-1.0]]]))[0][0, :, 0]
array([5.5, 5. ])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype, require_shape


def forward(x: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, None]:
    """x (B, N, C), position (1, N, C) -> y like x."""
    float_dtype("position_embedding", x=x, position=position)
    require_shape("position_embedding", "x", x, (None, None, None))
    require_shape("position_embedding", "position", position, (1, *x.shape[1:]))
    return x + position, None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray, np.ndarray]:
    """dy (B, N, C) -> (dx like dy, dposition (1, N, C))."""
    return dy, dy.sum(axis=0, keepdims=True)
