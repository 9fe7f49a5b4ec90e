"""Division by a constant: scores by the root of the channels of a head [SPEC 6.1].

>>> forward(np.array([6.0, -3.0]), 2.0)[0]
array([ 3. , -1.5])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype


class Cache(NamedTuple):
    divisor: float


def forward(x: np.ndarray, divisor: float) -> tuple[np.ndarray, Cache]:
    """Divide x (...) by a number."""
    float_dtype("divide", x=x)
    return x / divisor, Cache(divisor)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (...) -> (dx like dy,)."""
    return (dy / cache.divisor,)
