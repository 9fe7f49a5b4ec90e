"""Channels in equal parts: queries, keys and values of a real block [SPEC 6.4].

>>> [part.tolist() for part in forward(np.array([1.0, 2.0, 3.0]), 3)[0]]
[[1.0], [2.0], [3.0]]
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import ShapeError, float_dtype


def forward(x: np.ndarray, parts: int) -> tuple[tuple[np.ndarray, ...], None]:
    """x (..., parts * C) -> that many arrays (..., C), views."""
    float_dtype("split", x=x)
    if x.shape[-1] % parts:
        raise ShapeError(f"split: x has {x.shape[-1]} channels; expected a multiple of {parts}")
    return tuple(np.split(x, parts, axis=-1)), None


def backward(dy: tuple[np.ndarray, ...], cache: None) -> tuple[np.ndarray]:
    """Gradients of the parts, each (..., C) -> (dx (..., parts * C),)."""
    return (np.concatenate(dy, axis=-1),)
