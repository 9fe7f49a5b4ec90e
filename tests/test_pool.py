"""pool [SPEC 6.3]: PyTorch, central differences, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, ShapeError
from refimpl.ops import pool
from tests import check, strategies

POOLS = st.sampled_from(pool.POOLS)


@given(strategies.seeds(), strategies.sizes(3), POOLS, strategies.floats())
def test_against_torch(seed, shape, how, dtype):
    rng = np.random.default_rng(seed)
    x = strategies.normal(rng, shape, dtype)
    check.against_mirror(pool, (x,), rng, shape[1], floor=1.0, pool=how)


@given(strategies.seeds(), strategies.sizes(3, high=5), POOLS)
def test_against_central_differences(seed, shape, how):
    rng = np.random.default_rng(seed)
    check.against_central_differences(pool, (rng.standard_normal(shape),), rng, pool=how)


def test_rejects_bad_input():
    check.rejects_other_types(pool, (np.ones((2, 3, 4)),), pool="cls")
    with pytest.raises(ShapeError, match=r"x has shape \(3, 4\); expected \(any, any, any\)"):
        pool.forward(np.ones((3, 4)), "cls")
    with pytest.raises(ConfigError, match="pool is 'max'; expected one of 'cls', 'mean'"):
        pool.forward(np.ones((2, 3, 4)), "max")
