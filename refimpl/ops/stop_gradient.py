"""The value itself, for which nothing is learned: a parameter that is kept as it is [R5].

>>> backward(np.array([3.0]), forward(np.array([2.0]))[1])
(array([0.]),)
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype


def forward(x: np.ndarray) -> tuple[np.ndarray, None]:
    """Return x (...)."""
    float_dtype("stop_gradient", x=x)
    return x, None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray]:
    """Return (zeros like dy,)."""
    return (np.zeros_like(dy),)
