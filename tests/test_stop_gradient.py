"""stop_gradient [R5]: the value as it is, and no gradient."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from refimpl.ops import stop_gradient
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(2), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(stop_gradient, (strategies.normal(rng, shape, dtype),), rng)


@given(strategies.seeds(), strategies.sizes(2))
def test_its_gradient_is_zero_in_all_entries(seed, shape):
    rng = np.random.default_rng(seed)
    x = strategies.normal(rng, shape, np.dtype(float))
    (y,), _, (dx,) = check.run(stop_gradient, (x,), rng)
    np.testing.assert_array_equal(y, x)
    assert not dx.any()


def test_rejects_bad_input():
    check.rejects_other_types(stop_gradient, (np.ones((2, 3)),))
