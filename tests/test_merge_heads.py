"""merge_heads [SPEC 1]: PyTorch, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import merge_heads
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(merge_heads, (strategies.normal(rng, shape, dtype),), rng)


@given(strategies.seeds(), strategies.sizes(4, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(merge_heads, (rng.standard_normal(shape),), rng)


def test_rejects_bad_input():
    check.rejects_other_types(merge_heads, (np.ones((2, 3, 4, 5)),))
    with pytest.raises(ShapeError, match=r"\(3, 4, 5\); expected \(any, any, any, any\)"):
        merge_heads.forward(np.ones((3, 4, 5)))
