"""bands [SPEC 4, 6.2, R3, R4]: both modes, the class token, low + high = x, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, ShapeError
from refimpl.ops import bands
from tests import check, strategies

HAAR = st.sampled_from(["edge", "periodic"])
MODES = st.sampled_from(["edge", "periodic", "none"])
CLS = st.sampled_from(["both", "low"])
FIRST = st.integers(0, 1)  # class tokens in front of the grid


@given(strategies.seeds(), strategies.sizes(4, high=6), strategies.floats(), MODES, CLS, FIRST)
def test_against_torch(seed, shape, dtype, mode, cls, first):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = strategies.normal(rng, (batch, first + grid[0] * grid[1], channels), dtype)
    check.against_mirror(bands, (x,), rng, 16, grid=tuple(grid), mode=mode, cls=cls)


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 1)])
def test_thin_grids_against_torch(grid):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 1 + grid[0] * grid[1], 3))
    for mode in ("edge", "periodic", "none"):
        check.against_mirror(bands, (x,), rng, 16, grid=grid, mode=mode, cls="both")


@given(strategies.seeds(), strategies.sizes(4, high=6), strategies.floats(), HAAR, FIRST)
def test_the_bands_add_up_to_the_input(seed, shape, dtype, mode, first):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = strategies.normal(rng, (batch, first + grid[0] * grid[1], channels), dtype)
    (low, high), _ = bands.forward(x, tuple(grid), mode, "low")
    u = np.finfo(dtype).eps / 2
    assert np.abs(low + high - x).max() <= 4 * u * np.abs(x).max()


@given(strategies.seeds(), strategies.sizes(4, high=5), MODES, CLS, FIRST)
def test_against_central_differences(seed, shape, mode, cls, first):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = rng.standard_normal((batch, first + grid[0] * grid[1], channels))
    check.against_central_differences(bands, (x,), rng, grid=tuple(grid), mode=mode, cls=cls)


def test_literal_values_of_a_two_by_two_grid():
    x = np.array([9.0, 1.0, 2.0, 4.0, 8.0]).reshape(1, 5, 1)  # class token, then 1 2 / 4 8
    (low, high), _ = bands.forward(x, (2, 2))
    np.testing.assert_array_equal(low[0, :, 0], [9, 15 / 4, 5, 6, 8])
    np.testing.assert_array_equal(high[0, :, 0], [9, -11 / 4, -3, -2, 0])
    (low, high), _ = bands.forward(x, (2, 2), cls="low")
    assert low[0, 0, 0] == 9 and high[0, 0, 0] == 0
    (low, _), _ = bands.forward(x, (2, 2), mode="periodic")
    np.testing.assert_array_equal(low[0, 1:, 0], [15 / 4] * 4)


@given(strategies.seeds(), strategies.sizes(4, high=6), strategies.floats(), CLS, FIRST)
def test_without_a_transform_both_bands_are_the_input(seed, shape, dtype, cls, first):
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    x = strategies.normal(rng, (batch, first + grid[0] * grid[1], channels), dtype)
    (low, high), cache = bands.forward(x, tuple(grid), "none", cls)
    np.testing.assert_array_equal(low, x)
    np.testing.assert_array_equal(high[:, first:], x[:, first:])
    dlow, dhigh = rng.standard_normal((2, *x.shape)).astype(dtype)
    (dx,) = bands.backward((dlow, dhigh), cache)
    np.testing.assert_array_equal(dx[:, first:], (dlow + dhigh)[:, first:])


def test_the_class_token_and_the_patches_do_not_mix():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 4))
    (low, high), cache = bands.forward(x, (2, 3))
    (patch_low, patch_high), _ = bands.forward(x[:, 1:], (2, 3))
    np.testing.assert_array_equal(low[:, 1:], patch_low)
    np.testing.assert_array_equal(high[:, 1:], patch_high)
    dlow, dhigh = rng.standard_normal((2, *low.shape))
    (dx,) = bands.backward((dlow, dhigh), cache)
    np.testing.assert_array_equal(dx[:, 0], dlow[:, 0] + dhigh[:, 0])


def test_rejects_bad_input():
    check.rejects_other_types(bands, (np.ones((2, 7, 4)),), grid=(2, 3))
    with pytest.raises(ShapeError, match="8 tokens"):
        bands.forward(np.ones((2, 8, 4)), (2, 3))
    with pytest.raises(ConfigError, match="mode.*'edge', 'periodic', 'none'"):
        bands.forward(np.ones((2, 7, 4)), (2, 3), mode="reflect")
    with pytest.raises(ConfigError, match="cls"):
        bands.forward(np.ones((2, 7, 4)), (2, 3), cls="high")
