"""weight_binarizer [SPEC 2]: scale, centring, clip, threshold points, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import NonFiniteError, ShapeError
from refimpl.ops import weight_binarizer
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(2, high=20), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    weight = strategies.weight(rng, shape, dtype)
    check.against_mirror(weight_binarizer, (weight,), rng, length=shape[1])


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_literal_values_with_a_tie(dtype):
    # Row 0 has mean 1, so Wc = 3 0 -3; the tie in the middle is +1. Row 1 has mean -2.
    weight = np.array([[4.0, 1.0, -2.0], [-2.0, -3.0, -1.0]], dtype)
    binary, _ = weight_binarizer.forward(weight)
    np.testing.assert_allclose(binary, [[7 / 3, 7 / 3, -7 / 3], [2, -2, 2]], rtol=1e-6)


def test_the_scale_is_of_the_weights_and_not_of_the_centred_ones():
    weight = np.array([[11.0, 9.0]])
    np.testing.assert_array_equal(weight_binarizer.forward(weight)[0], [[10, -10]])


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_gradient_inside_at_and_outside_the_clip(dtype):
    # Mean 0: Wc = W. |Wc| = 1 lets the gradient through, 2 does not.
    weight = np.array([[1.0, -1.0, 2.0, -2.0]], dtype)
    dy = np.array([[3.0, 5.0, 70.0, 90.0]], dtype)
    (dweight,) = weight_binarizer.backward(dy, weight_binarizer.forward(weight)[1])
    np.testing.assert_array_equal(dweight, [[1, 3, -2, -2]])  # 3 5 0 0 less its mean 2


@given(strategies.seeds(), strategies.sizes(2, high=20))
def test_the_gradient_has_no_part_that_moves_the_mean(seed, shape):
    rng = np.random.default_rng(seed)
    weight, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    (dweight,) = weight_binarizer.backward(dy, weight_binarizer.forward(weight)[1])
    assert np.abs(dweight.sum(axis=1)).max() < 1e-13


def test_rejects_bad_input():
    check.rejects_other_types(weight_binarizer, (np.ones((2, 3)),))
    with pytest.raises(ShapeError, match=r"weight has shape \(3,\)"):
        weight_binarizer.forward(np.ones(3))
    with pytest.raises(NonFiniteError):
        weight_binarizer.forward(np.array([[1.0, np.nan]]))
