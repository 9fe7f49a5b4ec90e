"""split [SPEC 6.4]: PyTorch, central differences, the inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import split
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(3), st.integers(1, 4), strategies.floats())
def test_against_torch(seed, shape, parts, dtype):
    rng = np.random.default_rng(seed)
    x = strategies.normal(rng, (*shape[:2], parts * shape[2]), dtype)
    check.against_mirror(split, (x,), rng, parts=parts)
    y, cache = split.forward(x, parts)
    np.testing.assert_array_equal(split.backward(y, cache)[0], x)


@given(strategies.seeds(), strategies.sizes(2))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((shape[0], 3 * shape[1]))
    check.against_central_differences(split, (x,), rng, parts=3)


def test_rejects_bad_input():
    check.rejects_other_types(split, (np.ones((2, 6)),), parts=3)
    with pytest.raises(ShapeError, match="split: x has 7 channels; expected a multiple of 3"):
        split.forward(np.ones((2, 7)), 3)
