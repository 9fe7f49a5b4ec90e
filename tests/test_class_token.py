"""class_token [SPEC 6.3]: PyTorch, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import class_token
from tests import check, strategies


def draw(rng, shape, dtype):
    token = strategies.normal(rng, (1, 1, shape[-1]), dtype)
    return strategies.normal(rng, shape, dtype), token


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(class_token, draw(rng, shape, dtype), rng, shape[0], floor=1.0)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(class_token, draw(rng, shape, np.float64), rng)


def test_rejects_bad_input():
    check.rejects_other_types(class_token, (np.ones((2, 3, 4)), np.ones((1, 1, 4))))
    with pytest.raises(ShapeError, match=r"x has shape \(3, 4\)"):
        class_token.forward(np.ones((3, 4)), np.ones((1, 1, 4)))
    for wrong in ((1, 1, 3), (2, 1, 4), (4,), (1, 2, 4)):
        with pytest.raises(ShapeError, match=r"token has shape .*; expected \(1, 1, 4\)"):
            class_token.forward(np.ones((2, 3, 4)), np.ones(wrong))
