"""layer_norm [SPEC 6.3]: PyTorch, central differences, biased variance, two passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import layer_norm
from tests import check, strategies

EPS = st.sampled_from([1e-6, 1e-5, 0.5])


def draw(rng, shape, dtype):
    channels = shape[-1:]
    return (
        strategies.normal(rng, shape, dtype),
        strategies.normal(rng, channels, dtype),
        strategies.normal(rng, channels, dtype),
    )


def shapes(high):
    """At least 5 channels: with 2 the gradient of x is 0 but for eps, and nothing is compared."""
    return strategies.sizes(3, low=2, high=high).map(lambda s: (*s[:2], s[2] + 5))


@given(strategies.seeds(), shapes(9), strategies.floats(), EPS)
def test_against_torch(seed, shape, dtype, eps):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, shape, dtype)
    check.against_mirror(layer_norm, arrays, rng, arrays[0].size, floor=1.0, eps=eps)


@given(strategies.seeds(), shapes(4), EPS)
def test_against_central_differences(seed, shape, eps):
    rng = np.random.default_rng(seed)
    # Spread out, so that no row has a variance near 0, where the third derivative explodes.
    x, weight, bias = draw(rng, shape, np.float64)
    x = x + np.arange(shape[-1])
    check.against_central_differences(layer_norm, (x, weight, bias), rng, eps=eps)


def test_the_variance_is_biased_and_eps_is_inside_the_root():
    x, one, zero = np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2)
    np.testing.assert_array_equal(layer_norm.forward(x, one, zero, 0.0)[0], [[-1, 1]])
    np.testing.assert_array_equal(layer_norm.forward(x, one, zero, 3.0)[0], [[-0.5, 0.5]])


def test_two_passes_survive_a_large_mean():
    x = np.array([[1.0, 3.0]]) + 1e8  # E[x^2] - E[x]^2 would lose all digits
    y, _ = layer_norm.forward(x, np.ones(2), np.zeros(2), 0.0)
    np.testing.assert_array_equal(y, [[-1, 1]])


def test_a_constant_row_is_the_bias():
    y, _ = layer_norm.forward(np.full((2, 3), 7.0), np.ones(3), np.array([1.0, 2.0, 3.0]), 1e-5)
    np.testing.assert_array_equal(y, [[1, 2, 3], [1, 2, 3]])


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4), np.float64)
    check.rejects_other_types(layer_norm, arrays, eps=1e-5)
    for index, name in ((1, "weight"), (2, "bias")):
        changed = [*arrays[:index], np.ones(3), *arrays[index + 1 :]]
        with pytest.raises(ShapeError, match=name):
            layer_norm.forward(*changed, 1e-5)
