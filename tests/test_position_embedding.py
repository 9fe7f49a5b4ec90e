"""position_embedding [SPEC 6.3]: PyTorch, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import position_embedding
from tests import check, strategies


def draw(rng, shape, dtype):
    position = strategies.normal(rng, (1, *shape[1:]), dtype)
    return strategies.normal(rng, shape, dtype), position


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(position_embedding, draw(rng, shape, dtype), rng, shape[0], floor=1.0)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(position_embedding, draw(rng, shape, np.float64), rng)


def test_rejects_bad_input():
    check.rejects_other_types(position_embedding, (np.ones((2, 3, 4)), np.ones((1, 3, 4))))
    with pytest.raises(ShapeError, match=r"x has shape \(3, 4\)"):
        position_embedding.forward(np.ones((3, 4)), np.ones((1, 3, 4)))
    for wrong in ((1, 2, 4), (1, 3, 1), (2, 3, 4), (3, 4)):
        with pytest.raises(ShapeError, match=r"position has shape .*; expected \(1, 3, 4\)"):
            position_embedding.forward(np.ones((2, 3, 4)), np.ones(wrong))
