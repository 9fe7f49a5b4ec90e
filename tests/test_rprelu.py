"""rprelu [SPEC 3, R6]: with and without token shifts, the kink, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import rprelu
from tests import check, strategies


def draw(rng, shape, dtype, per_token):
    """Inputs and shifts are fractions of 64, so that u is exact and 0 where it is meant to be."""
    batch, tokens, channels = shape
    x = strategies.on_grid(rng, shape, dtype)
    shift_in, slope, shift_out = (strategies.on_grid(rng, (channels,), dtype) for _ in range(3))
    token_shifts = tuple(
        strategies.on_grid(rng, (tokens,), dtype) if per_token else None for _ in range(2)
    )
    # A share of the entries lies exactly on the kink.
    kink = shift_in + (token_shifts[0][:, None] if per_token else np.zeros((tokens, 1), dtype))
    x = np.where(rng.random(shape) < 0.2, kink, x)
    return x, shift_in, slope, shift_out, *token_shifts


@given(strategies.seeds(), strategies.sizes(3), strategies.floats(), st.booleans())
def test_against_torch(seed, shape, dtype, per_token):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, shape, dtype, per_token)
    check.against_mirror(rprelu, arrays, rng, arrays[0].size, floor=1.0)


@given(strategies.seeds(), strategies.sizes(3, high=5), st.booleans())
def test_against_central_differences(seed, shape, per_token):
    rng = np.random.default_rng(seed)
    x, shift_in, slope, *shifts = draw(rng, shape, np.float64, per_token)
    # Half a grid step away from every grid value: off the kink by far more than the step taken.
    arrays = (x + 0.5 / strategies.GRID, shift_in, slope, *shifts)
    check.against_central_differences(rprelu, arrays, rng)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_the_kink_belongs_to_the_sloped_side(dtype):
    x = np.array([[[-0.0], [0.0], [2.0], [-2.0]]], dtype)
    zero, slope = np.zeros(1, dtype), np.full(1, 0.25, dtype)
    y, cache = rprelu.forward(x, zero, slope, zero)
    np.testing.assert_array_equal(y[0, :, 0], [0, 0, 2, -0.5])
    dy = np.array([[[4.0], [8.0], [16.0], [32.0]]], dtype)
    dx, dshift_in, dslope, dshift_out, *token = rprelu.backward(dy, cache)
    np.testing.assert_array_equal(dx[0, :, 0], [1, 2, 16, 8])
    assert (dshift_in, dslope, dshift_out) == (-27, -64, 60)
    assert token == [None, None]


def test_token_shifts_act_on_tokens_and_channel_shifts_on_channels():
    x = np.zeros((1, 2, 3))
    shift_out, token_shift_out = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0])
    zeros = np.zeros(3)
    y, _ = rprelu.forward(x, zeros, zeros, shift_out, np.zeros(2), token_shift_out)
    np.testing.assert_array_equal(y[0], [[11, 12, 13], [21, 22, 23]])


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4), np.float64, True)
    check.rejects_other_types(rprelu, arrays)
    with pytest.raises(ShapeError, match="token_shift_in"):
        rprelu.forward(*arrays[:4], np.zeros(4), np.zeros(4))
    with pytest.raises(ShapeError, match="token shift"):
        rprelu.forward(*arrays[:5])
    with pytest.raises(ShapeError, match="slope"):
        rprelu.forward(arrays[0], arrays[1], np.zeros(3), arrays[3])
