"""add [SPEC 6.1]: PyTorch, the order of the terms, one term alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import add
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(3), st.integers(1, 5), strategies.floats())
def test_against_torch(seed, shape, terms, dtype):
    rng = np.random.default_rng(seed)
    arrays = tuple(strategies.normal(rng, shape, dtype) for _ in range(terms))
    check.against_mirror(add, arrays, rng, terms, floor=1.0)


@given(strategies.seeds(), strategies.sizes(2), st.integers(1, 4))
def test_against_central_differences(seed, shape, terms):
    rng = np.random.default_rng(seed)
    check.against_central_differences(add, tuple(rng.standard_normal((terms, *shape))), rng)


def test_terms_are_added_from_left_to_right():
    """1 is lost beside 2^53 where it is added first, and is not behind -2^53."""
    large, one = np.array([2.0**53]), np.array([1.0])
    assert add.forward(large, one, -large)[0] == 0
    assert add.forward(large, -large, one)[0] == 1
    assert add.forward(large)[0] is large


def test_rejects_bad_input():
    check.rejects_other_types(add, (np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3))))
    for wrong in ((3,), (2, 1), (1, 2, 3)):
        with pytest.raises(ShapeError, match=r"add: a term has shape .*; expected \(2, 3\)"):
            add.forward(np.ones((2, 3)), np.ones((2, 3)), np.ones(wrong))
