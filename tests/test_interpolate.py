"""interpolate [SPEC 6.3]: both modes, up and down, thin images, PyTorch, what must be exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, ShapeError
from refimpl.ops import interpolate
from tests import check, strategies, tolerances

MODES = st.sampled_from(["bicubic", "bilinear"])
SIDES = st.integers(1, 12)
SIZES = st.tuples(SIDES, SIDES)

# Torch computes the position of a pixel in the dtype of the image: an ulp of it is that of 12.
LENGTH = 12**2


@given(strategies.seeds(), strategies.sizes(4), SIZES, strategies.floats(), MODES)
def test_against_torch(seed, shape, size, dtype, mode):
    rng = np.random.default_rng(seed)
    x = strategies.normal(rng, shape, dtype)
    check.against_mirror(interpolate, (x,), rng, LENGTH, floor=1.0, size=size, mode=mode)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (2, 3)])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 1), (2, 3), (2, 6), (8, 9), (64, 33)])
def test_thin_images_against_torch(mode, shape, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *shape))
    check.against_mirror(interpolate, (x,), rng, 64, size=size, mode=mode)


@given(strategies.seeds(), strategies.sizes(3, high=5), SIZES, MODES)
def test_against_central_differences(seed, shape, size, mode):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    check.against_central_differences(interpolate, (x,), rng, size=size, mode=mode)


@given(strategies.seeds(), strategies.sizes(3), strategies.floats(), MODES)
def test_the_same_size_is_the_identity_bit_for_bit(seed, shape, dtype, mode):
    rng = np.random.default_rng(seed)
    x, dy = (strategies.normal(rng, shape, dtype) for _ in range(2))
    y, cache = interpolate.forward(x, shape[1:], mode)
    (dx,) = interpolate.backward(dy, cache)
    for actual, expected in ((y, x), (dx, dy)):
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))  # of zeros


@given(strategies.seeds(), strategies.sizes(2), SIZES, strategies.floats(), MODES)
def test_a_constant_stays_and_the_weights_of_a_pixel_are_spread(seed, shape, size, dtype, mode):
    """Rows of the two matrices sum to 1, so the sum of a gradient is kept by the backward."""
    rng = np.random.default_rng(seed)
    y, cache = interpolate.forward(np.full(shape, 3, dtype), size, mode)
    allowed = tolerances.relative(dtype, 64)
    assert tolerances.disagreement(y, np.full(size, 3.0)) <= allowed
    dy = strategies.normal(rng, size, dtype)
    (dx,) = interpolate.backward(dy, cache)
    assert abs(dx.sum() - dy.sum()) <= allowed * max(np.abs(dy).sum(), 1)


def test_literal_values():
    y, cache = interpolate.forward(np.array([[0.0], [8.0]]), (4, 1))
    np.testing.assert_array_equal(y[:, 0], [-0.84375, 1.8125, 6.1875, 8.84375])
    (dx,) = interpolate.backward(np.array([[8.0], [0.0], [0.0], [0.0]]), cache)
    np.testing.assert_array_equal(dx[:, 0], [8.84375, -0.84375])
    y, cache = interpolate.forward(np.array([[1.0, 2.0, 4.0, 8.0]]), (1, 2))
    np.testing.assert_array_equal(
        y[0], [1.3125, 6.1875]
    )  # (-3, 19, 19, -3) / 32 of the nearest four
    y, cache = interpolate.forward(np.array([[0.0, 6.0, 0.0]]), (1, 2), "bilinear")
    np.testing.assert_array_equal(y[0], [1.5, 1.5])
    np.testing.assert_array_equal(
        interpolate.backward(np.array([[4.0, 8.0]]), cache)[0], [[3.0, 3.0, 6.0]]
    )


def test_rejects_bad_input():
    check.rejects_other_types(interpolate, (np.ones((2, 3, 4)),), size=(5, 6))
    with pytest.raises(ConfigError, match="mode.*'bicubic', 'bilinear'"):
        interpolate.forward(np.ones((2, 3)), (4, 5), "nearest")
    for shape in ((), (3,), (2, 0, 4)):
        with pytest.raises(ShapeError, match=r"interpolate: x has shape .*rows, columns"):
            interpolate.forward(np.ones(shape), (4, 5))
    for size in ((0, 4), (4, -1), (4,), (2, 3, 4)):
        with pytest.raises(ShapeError, match="interpolate: size is"):
            interpolate.forward(np.ones((2, 3)), size)
