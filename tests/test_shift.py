"""shift [SPEC 5]: PyTorch, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import shift
from tests import check, strategies


def draw(rng, shape, dtype):
    return strategies.normal(rng, shape, dtype), strategies.normal(rng, shape[-1:], dtype)


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(shift, draw(rng, shape, dtype), rng, shape[0] * shape[1], floor=1.0)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(shift, draw(rng, shape, np.float64), rng)


def test_rejects_bad_input():
    check.rejects_other_types(shift, (np.ones((2, 3, 4)), np.ones(4)))
    with pytest.raises(ShapeError, match=r"x has shape \(3, 4\); expected \(any, any, any\)"):
        shift.forward(np.ones((3, 4)), np.ones(4))
    for wrong in (3, 1):
        with pytest.raises(ShapeError, match=r"move has shape .*; expected \(4\)"):
            shift.forward(np.ones((2, 3, 4)), np.ones(wrong))
