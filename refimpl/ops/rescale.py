"""Product with a constant that is rounded to the dtype of x first [SPEC 6.3].

For attention over another number of tokens: probabilities go with 1/N, and so does alpha.

>>> forward(np.array(0.5), 1.5)[0]
array(0.75)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype


class Cache(NamedTuple):
    factor: float


def forward(x: np.ndarray, factor: float) -> tuple[np.ndarray, Cache]:
    """Multiply x (...) by a number."""
    float_dtype("rescale", x=x)
    return np.asarray(x * x.dtype.type(factor)), Cache(factor)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (...) -> (dx like dy,)."""
    return (np.asarray(dy * dy.dtype.type(cache.factor)),)
