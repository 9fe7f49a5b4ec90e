"""divide [SPEC 6.1]: PyTorch, central differences, a division and no product."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from refimpl.ops import divide
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(4, high=6), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(divide, (strategies.normal(rng, shape, dtype),), rng, divisor=7**0.5)


@given(strategies.seeds(), strategies.sizes(2))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(divide, (rng.standard_normal(shape),), rng, divisor=0.3)


def test_it_divides():
    """5 / 49 is not 5 * (1 / 49), to the bit, in either direction."""
    x = np.array([5.0])
    y, cache = divide.forward(x, 49.0)
    assert y == 5 / 49 != 5 * (1 / 49)
    assert divide.backward(x, cache)[0] == 5 / 49


def test_rejects_bad_input():
    check.rejects_other_types(divide, (np.ones((2, 3)),), divisor=2.0)
