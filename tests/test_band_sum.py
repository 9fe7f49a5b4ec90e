"""band_sum [SPEC 6.2, R5]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import band_sum
from tests import check, strategies


def draw(rng, shape, dtype):
    batch, heads, tokens = shape
    low, high = (strategies.normal(rng, (batch, heads, tokens, tokens), dtype) for _ in "lh")
    return low, high, strategies.normal(rng, (2, heads), dtype)


@given(strategies.seeds(), strategies.sizes(3), strategies.floats(), st.integers(2, 70))
def test_against_torch(seed, shape, dtype, head_dim):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, shape, dtype)
    check.against_mirror(band_sum, arrays, rng, arrays[0].size, floor=1.0, head_dim=head_dim)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(band_sum, draw(rng, shape, np.float64), rng, head_dim=3)


def test_literal_values():
    low, high = np.full((1, 2, 1, 1), 8.0), np.full((1, 2, 1, 1), -4.0)
    weights = np.array([[0.5, 2.0], [0.25, -1.0]])  # low, high; one column a head
    scores, _ = band_sum.forward(low, high, weights, 4)
    np.testing.assert_array_equal(scores[0, :, 0, 0], [(4 - 1) / 2, (16 + 4) / 2])


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4), np.float64)
    check.rejects_other_types(band_sum, arrays, head_dim=5)
    with pytest.raises(ShapeError, match="band_weight"):
        band_sum.forward(arrays[0], arrays[1], arrays[2].T, 5)
    with pytest.raises(ShapeError, match="high"):
        band_sum.forward(arrays[0], arrays[1][:, :, :2], arrays[2], 5)
