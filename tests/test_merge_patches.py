"""merge_patches [SPEC 6.7]: PyTorch, Swin's order, the inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import merge_patches
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(4, low=1, high=5), strategies.floats())
def test_against_torch_and_its_inverse(seed, sizes, dtype):
    rng = np.random.default_rng(seed)
    batch, channels, rows, columns = sizes
    grid = (2 * rows, 2 * columns)
    x = strategies.normal(rng, (batch, grid[0] * grid[1], channels), dtype)
    check.against_mirror(merge_patches, (x,), rng, 1, grid=grid)
    y, cache = merge_patches.forward(x, grid)
    np.testing.assert_array_equal(merge_patches.backward(y, cache)[0], x)


def test_order_of_the_neighbours():
    """Channels of a token stay together; down comes before right."""
    x = np.array([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]])  # a grid of 2 x 2
    merged = merge_patches.forward(x, (2, 2))[0]
    np.testing.assert_array_equal(merged, [[[1, 10, 3, 30, 2, 20, 4, 40]]])


def test_rejects_bad_input():
    check.rejects_other_types(merge_patches, (np.ones((2, 8, 3)),), grid=(2, 4))
    with pytest.raises(ShapeError, match="a grid of 3 x 4; expected even sides"):
        merge_patches.forward(np.ones((2, 12, 3)), (3, 4))
    with pytest.raises(ShapeError, match=r"\(2, 9, 3\); expected \(any, 8, any\)"):
        merge_patches.forward(np.ones((2, 9, 3)), (2, 4))
