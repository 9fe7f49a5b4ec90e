"""to_grid [SPEC 10]: PyTorch, central differences, the inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import from_grid, to_grid
from tests import check, strategies


def draw(rng, sizes, dtype):
    batch, channels, *grid = sizes
    return strategies.normal(rng, (batch, grid[0] * grid[1], channels), dtype), tuple(grid)


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_against_torch_and_its_inverse(seed, sizes, dtype):
    rng = np.random.default_rng(seed)
    x, grid = draw(rng, sizes, dtype)
    check.against_mirror(to_grid, (x,), rng, grid=grid)
    np.testing.assert_array_equal(from_grid.forward(to_grid.forward(x, grid)[0])[0], x)


@given(strategies.seeds(), strategies.sizes(4, high=5))
def test_against_central_differences(seed, sizes):
    rng = np.random.default_rng(seed)
    x, grid = draw(rng, sizes, np.float64)
    check.against_central_differences(to_grid, (x,), rng, grid=grid)


def test_rejects_bad_input():
    check.rejects_other_types(to_grid, (np.ones((2, 6, 4)),), grid=(2, 3))
    for wrong in ((2, 7, 4), (6, 4)):
        with pytest.raises(ShapeError, match=r"x has shape .*; expected \(any, 6, any\)"):
            to_grid.forward(np.ones(wrong), (2, 3))
