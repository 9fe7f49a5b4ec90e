"""identity [SPEC 5]: the value and the gradient as they are."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from refimpl.ops import identity
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(identity, (strategies.normal(rng, shape, dtype),), rng)


def test_nothing_is_copied():
    x, dy = np.ones(3), np.arange(3.0)
    y, cache = identity.forward(x)
    assert y is x and identity.backward(dy, cache)[0] is dy


def test_rejects_bad_input():
    check.rejects_other_types(identity, (np.ones((2, 3)),))
