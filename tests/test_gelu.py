"""gelu with the exact erf: PyTorch, central differences, values of the normal distribution."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given

from refimpl.ops import gelu
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(gelu, (2 * strategies.normal(rng, shape, dtype),), rng, 4)


@given(strategies.seeds(), strategies.sizes(2))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(gelu, (2 * rng.standard_normal(shape),), rng)


def test_it_is_x_times_the_normal_distribution_and_not_the_tanh_formula():
    x = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    expected = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x]
    np.testing.assert_allclose(gelu.forward(x)[0], expected, rtol=1e-14)


def test_rejects_other_types():
    check.rejects_other_types(gelu, (np.ones((2, 3)),))
