"""box [SPEC 6.8]: PyTorch, thin grids, central differences, literal values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, ShapeError
from refimpl.ops import box
from tests import check, strategies

SIDES, AXES = st.sampled_from([1, 3, 5]), st.integers(0, 1)


@given(strategies.seeds(), strategies.sizes(4, high=6), strategies.floats(), SIDES, AXES)
def test_against_torch(seed, shape, dtype, side, axis):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = strategies.normal(rng, (batch, grid[0] * grid[1], channels), dtype)
    check.against_mirror(box, (x,), rng, side, floor=1.0, grid=tuple(grid), side=side, axis=axis)


@given(strategies.seeds(), strategies.sizes(4, high=5), SIDES, AXES)
def test_against_central_differences(seed, shape, side, axis):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = rng.standard_normal((batch, grid[0] * grid[1], channels))
    check.against_central_differences(box, (x,), rng, grid=tuple(grid), side=side, axis=axis)


def test_zeros_beyond_the_grid_count():
    x = np.arange(1.0, 7.0).reshape(1, 6, 1)  # a grid of 2 x 3
    assert (3 * box.forward(x, (2, 3), 3, 1)[0]).ravel().tolist() == [3, 6, 5, 9, 15, 11]
    assert (5 * box.forward(x, (2, 3), 5, 0)[0]).ravel().tolist() == [5, 7, 9, 5, 7, 9]


def test_rejects_bad_input():
    options = {"grid": (1, 3), "side": 3, "axis": 0}
    check.rejects_other_types(box, (np.ones((2, 3, 4)),), **options)
    with pytest.raises(ShapeError, match=r"x has shape \(2, 4, 4\); expected \(any, 3, any\)"):
        box.forward(np.ones((2, 4, 4)), **options)
    with pytest.raises(ConfigError, match="side is 2; expected an odd number"):
        box.forward(np.ones((2, 3, 4)), **{**options, "side": 2})
    with pytest.raises(ConfigError, match="axis is 2; expected one of 0, 1"):
        box.forward(np.ones((2, 3, 4)), **{**options, "axis": 2})
