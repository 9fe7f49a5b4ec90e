"""The patches without the class token, which nobody decodes [SPEC 10].

>>> forward(np.array([[[1.0], [5.0], [6.0]]]))[0][0, :, 0]
array([5., 6.])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype, require_shape


def forward(x: np.ndarray) -> tuple[np.ndarray, None]:
    """x (B, 1 + gh*gw, C) -> y (B, gh*gw, C), a view."""
    float_dtype("drop_class_token", x=x)
    require_shape("drop_class_token", "x", x, (None, None, None))
    return x[:, 1:], None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray]:
    """dy (B, gh*gw, C) -> (dx (B, 1 + gh*gw, C),), 0 at the class token."""
    return (np.concatenate([np.zeros_like(dy[:, :1]), dy], axis=1),)
