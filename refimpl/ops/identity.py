"""The value itself: where one name stands for what several operations of a unit read [SPEC 5].

>>> forward(np.array([1.0, 2.0]))[0]
array([1., 2.])
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import float_dtype


def forward(x: np.ndarray) -> tuple[np.ndarray, None]:
    """Return x (...)."""
    float_dtype("identity", x=x)
    return x, None


def backward(dy: np.ndarray, cache: None) -> tuple[np.ndarray]:
    """Return (dy,)."""
    return (dy,)
