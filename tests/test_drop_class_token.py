"""drop_class_token [SPEC 10]: PyTorch, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import drop_class_token
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(drop_class_token, (strategies.normal(rng, shape, dtype),), rng)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(drop_class_token, (rng.standard_normal(shape),), rng)


def test_rejects_bad_input():
    check.rejects_other_types(drop_class_token, (np.ones((2, 3, 4)),))
    with pytest.raises(ShapeError, match=r"x has shape \(3, 4\); expected \(any, any, any\)"):
        drop_class_token.forward(np.ones((3, 4)))
