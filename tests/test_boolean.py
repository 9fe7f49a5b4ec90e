"""boolean [SPEC 2]: threshold points, both alpha scopes, the gradient of alpha, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import NonFiniteError
from refimpl.ops import boolean
from tests import check, strategies

# x = q * alpha with alpha a power of two: q is hit exactly.
POINTS = tuple(q / 4 for q in (0.0, 0.5, 1.0, 1.5))


@given(
    strategies.seeds(),
    strategies.sizes(4, high=6),
    strategies.floats(),
    st.booleans(),
    st.sampled_from([0.25, 0.3, 1e-5, 0.5e-5, 0.0, -0.2]),
)
def test_against_torch(seed, shape, dtype, per_head, alpha):
    rng = np.random.default_rng(seed)
    x = strategies.on_grid(rng, shape, dtype, (*POINTS, -0.0))
    heads = shape[1]
    if per_head:
        step = rng.permutation(np.linspace(0.1, 1, heads))
        step[0] = alpha
        step = step.astype(dtype).reshape(heads, 1, 1)
    else:
        step = np.array(alpha, dtype)
    check.against_mirror(boolean, (x, step), rng, x.size, floor=1.0)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_threshold_points_by_name(dtype):
    alpha = np.array(0.25, dtype)
    ratio = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2], dtype)
    y, cache = boolean.forward(alpha * ratio, alpha)
    # 1/2 rounds to 0 (half to even), 3/2 rounds to 2 and is clipped to 1
    np.testing.assert_array_equal(y, 0.25 * np.array([0, 0, 0, 1, 1, 1, 1, 1]))
    dy = np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0], dtype)
    dx, dalpha = boolean.backward(dy, cache)
    np.testing.assert_array_equal(dx, dy * np.array([1, 1, 1, 1, 1, 0, 0, 0]))
    # bit - q inside: 0, -1/4, -1/2, +1/4, 0; above: 1
    assert dalpha == -3 / 4 - 5 / 2 + 7 / 4 + 13 + 17 + 19
    assert dalpha.shape == () and dalpha.dtype == dtype


def test_one_ulp_above_one_half_is_one():
    alpha = np.array(1.0)
    x = np.array([np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1)])
    np.testing.assert_array_equal(boolean.forward(x, alpha)[0], [0, 0, 1])


@pytest.mark.parametrize("alpha", [0.5e-5, 0.0, -1.0])
def test_a_held_alpha_has_no_gradient(alpha):
    x = np.array([0.0, 0.3e-5, 0.7e-5, 0.5])
    y, cache = boolean.forward(x, np.array(alpha))
    np.testing.assert_array_equal(y, 1e-5 * np.array([0, 0, 1, 1]))
    _, dalpha = boolean.backward(np.array([2.0, 3.0, 5.0, 7.0]), cache)
    assert dalpha == 0


def test_the_smallest_free_alpha_has_a_gradient():
    _, cache = boolean.forward(np.array([1.0]), np.array(1e-5))
    assert boolean.backward(np.array([3.0]), cache)[1] == 3


def test_rejects_bad_input():
    check.rejects_other_types(boolean, (np.ones((2, 3, 4, 5)), np.array(0.5)))
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="boolean"):
            boolean.forward(np.array([0.5, bad]), np.array(0.5))
        with pytest.raises(NonFiniteError, match="alpha"):
            boolean.forward(np.array([0.5]), np.array(bad))
