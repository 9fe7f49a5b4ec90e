"""sign [SPEC 2]: threshold points, the surrogates, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, NonFiniteError
from refimpl.ops import sign
from tests import check, strategies

STES = st.sampled_from(["polynomial", "clip"])


@given(strategies.seeds(), strategies.sizes(3), strategies.floats(), STES)
def test_against_torch(seed, shape, dtype, ste):
    rng = np.random.default_rng(seed)
    z = strategies.on_grid(rng, shape, dtype, (0.0, -0.0, 1.0, -1.0))
    check.against_mirror(sign, (z,), rng, ste=ste)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_both_zeros_are_positive(dtype):
    z = np.array([0.0, -0.0, 1e-30, -1e-30, 3.0, -3.0], dtype)
    np.testing.assert_array_equal(sign.forward(z)[0], [1, 1, 1, -1, 1, -1])


@pytest.mark.parametrize(
    ("ste", "expected"),
    # z =        -0.0 0   1  -1 .5 -.25 1.5 -8
    [
        ("polynomial", [2, 2, 0, 0, 1, 1.5, 0, 0]),
        ("clip", [1, 1, 1, 1, 1, 1, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_surrogate_at_its_threshold_points(ste, expected, dtype):
    z = np.array([-0.0, 0.0, 1.0, -1.0, 0.5, -0.25, 1.5, -8.0], dtype)
    dy = np.array([3.0, -5.0, 7.0, -2.0, 4.0, 0.5, 9.0, -1.0], dtype)
    (dz,) = sign.backward(dy, sign.forward(z, ste)[1])
    np.testing.assert_array_equal(dz, dy * np.array(expected, dtype))


def test_just_outside_the_clip_is_closed():
    z = np.nextafter(np.array([1.0, -1.0]), np.array([2.0, -2.0]))
    for ste in ("polynomial", "clip"):
        (dz,) = sign.backward(np.array([3.0, 5.0]), sign.forward(z, ste)[1])
        np.testing.assert_array_equal(dz, [0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_is_named(bad):
    with pytest.raises(NonFiniteError, match=r"sign.*\[1, 0\]"):
        sign.forward(np.array([[1.0, 2.0], [bad, 3.0]]))


def test_infinities_that_cancel_are_found():
    with pytest.raises(NonFiniteError):
        sign.forward(np.array([np.inf, -np.inf]))


def test_finite_values_whose_sum_overflows_pass():
    np.testing.assert_array_equal(sign.forward(np.full(3, 3e38, np.float32))[0], [1, 1, 1])


def test_rejects_other_types_and_estimators():
    check.rejects_other_types(sign, (np.ones((2, 3)),))
    with pytest.raises(ConfigError, match="ste"):
        sign.forward(np.ones(2), "identity")
