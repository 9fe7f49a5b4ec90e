"""neighbours [SPEC 6.2, R2]: both borders, thin grids, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, ShapeError
from refimpl.ops import neighbours
from tests import check, strategies

BORDERS = st.sampled_from(["existing", "eight"])
FIRST = st.integers(0, 1)  # class tokens in front of the grid


@given(strategies.seeds(), strategies.sizes(4, high=6), strategies.floats(), BORDERS, FIRST)
def test_against_torch(seed, shape, dtype, border, first):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = strategies.normal(rng, (batch, first + grid[0] * grid[1], channels), dtype)
    check.against_mirror(neighbours, (x,), rng, 8, grid=tuple(grid), border=border)


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 1)])
@pytest.mark.parametrize("border", ["existing", "eight"])
def test_thin_grids_against_torch(grid, border):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 1 + grid[0] * grid[1], 3))
    check.against_mirror(neighbours, (x,), rng, 8, grid=grid, border=border)


@given(strategies.seeds(), strategies.sizes(4, high=5), BORDERS, FIRST)
def test_against_central_differences(seed, shape, border, first):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = rng.standard_normal((batch, first + grid[0] * grid[1], channels))
    check.against_central_differences(neighbours, (x,), rng, grid=tuple(grid), border=border)


def test_corner_edge_and_middle_by_literal_values():
    x = np.array([7.0, *(2.0**i for i in range(12))]).reshape(1, 13, 1)  # grid of 3 x 4
    mean, _ = neighbours.forward(x, (3, 4))
    assert mean[0, 0, 0] == 0  # the class token has no neighbours
    assert mean[0, 1, 0] == (2 + 16 + 32) / 3  # corner
    assert mean[0, 2, 0] == (1 + 4 + 16 + 32 + 64) / 5  # edge
    assert mean[0, 6, 0] == (1 + 2 + 4 + 16 + 64 + 256 + 512 + 1024) / 8
    assert mean[0, 12, 0] == (64 + 128 + 1024) / 3
    mean, _ = neighbours.forward(x, (3, 4), border="eight")
    assert mean[0, 1, 0] == (2 + 16 + 32) / 8


@pytest.mark.parametrize("first", [0, 1])
def test_a_single_patch_has_no_neighbours(first):
    x = np.full((2, first + 1, 3), 5.0)
    mean, cache = neighbours.forward(x, (1, 1))
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(neighbours.backward(x, cache)[0], 0)


def test_rejects_bad_input():
    check.rejects_other_types(neighbours, (np.ones((2, 7, 4)),), grid=(2, 3))
    with pytest.raises(ShapeError, match="8 tokens"):
        neighbours.forward(np.ones((2, 8, 4)), (2, 3))
    with pytest.raises(ConfigError, match="border"):
        neighbours.forward(np.ones((2, 7, 4)), (2, 3), border="wrap")
