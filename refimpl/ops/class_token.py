"""The class token in front of the patches [SPEC 6.3].

>>> forward(np.array([[[5.0], [6.0]]]), np.array([[[1.0]]]))[0][0, :, 0]
array([1., 5., 6.])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype, require_shape


def forward(x: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, None]:
    """x (B, gh*gw, C), token (1, 1, C) -> y (B, 1 + gh*gw, C)."""
    float_dtype("class_token", x=x, token=token)
    require_shape("class_token", "x", x, (None, None, None))
    require_shape("class_token", "token", token, (1, 1, x.shape[-1]))
    first = np.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))
    return np.concatenate([first, x], axis=1), None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray, np.ndarray]:
    """dy (B, 1 + gh*gw, C) -> (dx (B, gh*gw, C), dtoken (1, 1, C))."""
    return dy[:, 1:], dy[:, :1].sum(axis=0, keepdims=True)
