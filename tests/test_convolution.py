"""convolution [SPEC 10]: PyTorch, central differences, thin grids, how the kernel lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import convolution
from tests import check, strategies


def draw(rng, shape, dtype):
    batch, rows, columns, inputs, outputs = shape
    return (
        strategies.normal(rng, (batch, rows * columns, inputs), dtype),
        strategies.normal(rng, (outputs, inputs, 3, 3), dtype),
        strategies.normal(rng, (outputs,), dtype),
    )


@given(strategies.seeds(), strategies.sizes(5), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    batch, rows, columns, inputs, outputs = shape
    length = max(9 * inputs, 9 * outputs, batch * rows * columns)
    arrays, grid = draw(rng, shape, dtype), (rows, columns)
    check.against_mirror(convolution, arrays, rng, length, floor=1.0, grid=grid)


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (5, 1), (2, 2)])
def test_thin_grids_against_torch(grid):
    rng = np.random.default_rng(0)
    arrays = draw(rng, (2, *grid, 3, 4), np.float64)
    check.against_mirror(convolution, arrays, rng, grid=grid)


def test_against_central_differences():
    rng = np.random.default_rng(0)
    arrays = draw(rng, (2, 3, 5, 4, 6), np.float64)
    check.against_central_differences(convolution, arrays, rng, grid=(3, 5))


def test_the_kernel_is_not_turned_around():
    """A kernel with one entry, at the right of the middle row, fetches the right neighbour."""
    x = np.arange(1.0, 7.0).reshape(1, 6, 1)
    weight = np.zeros((1, 1, 3, 3))
    weight[0, 0, 1, 2] = 1
    y, _ = convolution.forward(x, weight, np.zeros(1), grid=(2, 3))
    np.testing.assert_array_equal(y[0, :, 0], [2, 3, 0, 5, 6, 0])


def test_the_middle_of_the_kernel_alone_is_a_linear_map():
    rng = np.random.default_rng(0)
    x, weight, bias = draw(rng, (2, 3, 4, 5, 6), np.float64)
    weight[:, :, np.arange(9).reshape(3, 3) != 4] = 0
    y, _ = convolution.forward(x, weight, bias, grid=(3, 4))
    np.testing.assert_allclose(y, x @ weight[:, :, 1, 1].T + bias, rtol=1e-14)


def test_rejects_bad_input():
    x, weight, bias = draw(np.random.default_rng(0), (2, 3, 4, 5, 6), np.float64)
    check.rejects_other_types(convolution, (x, weight, bias), grid=(3, 4))
    for arrays, grid, words in (
        ((x, weight, bias), (3, 5), r"x has shape \(2, 12, 5\); expected \(any, 15, 5\)"),
        ((x[:, :, :4], weight, bias), (3, 4), r"x has shape \(2, 12, 4\)"),
        ((x, weight[:, :, :2], bias), (3, 4), r"weight has shape \(6, 5, 2, 3\)"),
        ((x, weight, bias[:5]), (3, 4), r"bias has shape \(5,\); expected \(6\)"),
    ):
        with pytest.raises(ShapeError, match=f"convolution: {words}"):
            convolution.forward(*arrays, grid=grid)
