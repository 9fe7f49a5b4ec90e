"""High-fidelity similarity: a learned sum of the scores of two Haar bands [SPEC 6.2, R5].

    scores = (w_low * low + w_high * high) / sqrt(d)         one weight a head and band

`low` and `high` are the products of binary queries and keys of each band: whole numbers.

>>> low, high = np.full((1, 1, 1, 1), 8.0), np.full((1, 1, 1, 1), -4.0)
>>> float(forward(low, high, np.array([[0.5], [0.25]]), head_dim=4)[0].item())
1.5
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    low: np.ndarray  # (B, heads, N, N)
    high: np.ndarray  # (B, heads, N, N)
    weights: np.ndarray  # (2, heads, 1, 1)
    head_dim: int


def forward(
    low: np.ndarray, high: np.ndarray, band_weight: np.ndarray, head_dim: int
) -> tuple[np.ndarray, Cache]:
    """low, high (B, heads, N, N), band_weight (2, heads): low, high -> scores (B, heads, N, N)."""
    float_dtype("band_sum", low=low, high=high, band_weight=band_weight)
    require_shape("band_sum", "low", low, (None, None, None, None))
    require_shape("band_sum", "high", high, low.shape)
    require_shape("band_sum", "band_weight", band_weight, (2, low.shape[1]))
    weights = band_weight[:, :, None, None]  # (2, heads, 1, 1)
    scores = weights[0] * low
    scores += weights[1] * high
    scores /= math.sqrt(head_dim)
    return scores, Cache(low, high, weights, head_dim)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, heads, N, N) -> (dlow, dhigh like dy, dband_weight (2, heads))."""
    low, high, weights, head_dim = cache
    dsum = dy / math.sqrt(head_dim)
    dband_weight = np.stack([(dsum * band).sum(axis=(0, 2, 3)) for band in (low, high)])
    return weights[0] * dsum, weights[1] * dsum, dband_weight
