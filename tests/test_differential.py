"""differential [SPEC 6.2, R1]: PyTorch, the start of training, constant fields."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import differential, neighbours
from tests import check, strategies


def draw(rng, shape, dtype):
    return (
        strategies.normal(rng, shape, dtype),
        strategies.normal(rng, shape, dtype),
        strategies.normal(rng, shape[-1:], dtype),
        strategies.normal(rng, shape[-1:], dtype),
    )


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, shape, dtype)
    check.against_mirror(differential, arrays, rng, shape[0] * shape[1], floor=1.0)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(differential, draw(rng, shape, np.float64), rng)


@given(strategies.seeds(), strategies.sizes(3))
def test_it_starts_as_the_plain_shortcut(seed, shape):
    value, mean, *_ = draw(np.random.default_rng(seed), shape, np.float64)
    ones, zeros = np.ones(shape[-1]), np.zeros(shape[-1])
    np.testing.assert_array_equal(differential.forward(value, mean, ones, zeros)[0], value)


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_a_constant_field_vanishes_where_both_factors_agree(seed, shape, dtype):
    """At every patch token; the class token, which has no neighbours, keeps lam_s * value."""
    rng = np.random.default_rng(seed)
    batch, channels, *grid = shape
    level, factor = strategies.normal(rng, (2, channels), dtype)
    value = np.tile(level, (batch, 1 + grid[0] * grid[1], 1))
    mean, _ = neighbours.forward(value, tuple(grid))
    y, _ = differential.forward(value, mean, factor, factor)
    assert np.abs(y[:, 1:]).max() <= 16 * np.finfo(dtype).eps * np.abs(level * factor).max()
    np.testing.assert_array_equal(y[:, 0], factor * value[:, 0])


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4), np.float64)
    check.rejects_other_types(differential, arrays)
    with pytest.raises(ShapeError, match="neighbour_mean"):
        differential.forward(arrays[0], arrays[1][:, :2], *arrays[2:])
    with pytest.raises(ShapeError, match="shortcut"):
        differential.forward(*arrays[:2], np.ones(3), arrays[3])
