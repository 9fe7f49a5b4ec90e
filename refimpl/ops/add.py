"""Sum of values of one shape, from left to right: residual streams and shortcuts [SPEC 6.1].

    y = ((a + b) + c) + …

>>> forward(np.array([1.0]), np.array([2.0]), np.array([4.0]))[0]
array([7.])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    count: int  # terms


def forward(first: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, Cache]:
    """Add terms of one shape; a single term is the sum itself."""
    float_dtype("add", first=first, **{f"term {i}": x for i, x in enumerate(others, 1)})
    y = first
    for term in others:
        require_shape("add", "a term", term, first.shape)
        y = y + term
    return y, Cache(1 + len(others))


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, ...]:
    """Hand dy to every term."""
    return (dy,) * cache.count
