"""from_grid [SPEC 10]: PyTorch, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import from_grid
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(from_grid, (strategies.normal(rng, shape, dtype),), rng)


@given(strategies.seeds(), strategies.sizes(4, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(from_grid, (rng.standard_normal(shape),), rng)


def test_rejects_bad_input():
    check.rejects_other_types(from_grid, (np.ones((2, 4, 2, 3)),))
    with pytest.raises(ShapeError, match=r"\(4, 2, 3\); expected \(any, any, any, any\)"):
        from_grid.forward(np.ones((4, 2, 3)))
