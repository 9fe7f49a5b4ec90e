"""Gaussian error linear unit with the exact erf, no tanh approximation.

    y = x * Phi(x),  Phi(x) = (1 + erf(x / sqrt(2))) / 2

>>> forward(np.array([-1.0, 0.0, 1.0]))[0].round(6)
array([-0.158655,  0.      ,  0.841345])
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype


class Cache(NamedTuple):
    x: np.ndarray  # (...)
    cdf: np.ndarray  # (...) Phi(x)


def forward(x: np.ndarray) -> tuple[np.ndarray, Cache]:
    """x (...) -> y like x."""
    from scipy.special import erf  # a slow import that binary networks do not need

    float_dtype("gelu", x=x)
    cdf = 0.5 * (1 + erf(x / math.sqrt(2)))
    return x * cdf, Cache(x, cdf)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (...) -> (dx like dy,)."""
    density = np.exp(-0.5 * np.square(cache.x)) / math.sqrt(2 * math.pi)
    return (dy * (cache.cdf + cache.x * density),)
