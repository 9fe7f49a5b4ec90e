"""What Hypothesis draws.

Hypothesis draws sizes, float type and a seed; NumPy fills the arrays from that seed, since drawing
every entry would take longer than the test. So a failing example is three short things to read, and
it shrinks to the smallest sizes.

All sizes of an example differ and exceed 1: in a (5, 5, 5) cube a wrong axis is invisible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))

# Fractions of 64 below 4 in magnitude: sums of a few thousand of them are exact in float32, in any
# order. So two correct programs agree on which side of a threshold a value lies.
GRID = 64


def floats() -> st.SearchStrategy[np.dtype]:
    return st.sampled_from(FLOATS)


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


def sizes(count: int, low: int = 2, high: int = 9) -> st.SearchStrategy[tuple[int, ...]]:
    """`count` sizes, all different, all greater than 1."""
    drawn = st.lists(st.integers(low, high), min_size=count, max_size=count, unique=True)
    return drawn.map(tuple)


def normal(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Values around 0 with exact 0.0 and -0.0 among them: also the upstream gradients of a test."""
    return _inject(rng, rng.standard_normal(shape), (0.0, -0.0)).astype(dtype)


def on_grid(
    rng: np.random.Generator,
    shape: Sequence[int],
    dtype: np.dtype,
    points: Sequence[float] = (0.0, -0.0),
) -> np.ndarray:
    """Fractions of 64 in [-2, 2], about one in five replaced by one of the threshold points."""
    values = rng.integers(-2 * GRID, 2 * GRID + 1, size=shape) / GRID
    return _inject(rng, values, points).astype(dtype)


def weight(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A matrix (O, I) with Wc = 0 and |Wc| = 1 in every size, and a row mean other than 0.

    Each row is a set of opposite pairs around a fraction of 64: its mean, and with it Wc, is exact.
    """
    rows, columns = shape
    half = on_grid(rng, (rows, columns // 2), np.float64, (0.0, 1.0, -1.0))
    odd = np.zeros((rows, columns % 2))
    centred = rng.permuted(np.concatenate([half, -half, odd], axis=1), axis=1)
    return (centred + rng.integers(-GRID, GRID + 1, size=(rows, 1)) / GRID).astype(dtype)


def probabilities(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Softmax output along the last axis."""
    scores = np.exp(2 * rng.standard_normal(shape))
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(dtype)


def binary(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Values of +1 and -1."""
    return rng.choice([-1.0, 1.0], size=shape).astype(dtype)


def _inject(rng: np.random.Generator, values: np.ndarray, points: Sequence[float]) -> np.ndarray:
    chosen = rng.random(values.shape) < 0.2
    return np.where(chosen, rng.choice(np.asarray(points), size=values.shape), values)
