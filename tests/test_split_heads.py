"""split_heads [SPEC 1]: PyTorch, central differences, the inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import merge_heads, split_heads
from tests import check, strategies


def draw(rng, sizes, dtype):
    batch, tokens, heads, d = sizes
    return strategies.normal(rng, (batch, tokens, heads * d), dtype), heads


@given(strategies.seeds(), strategies.sizes(4), st.booleans(), strategies.floats())
def test_against_torch(seed, sizes, transposed, dtype):
    rng = np.random.default_rng(seed)
    x, heads = draw(rng, sizes, dtype)
    check.against_mirror(split_heads, (x,), rng, heads=heads, transposed=transposed)


@given(strategies.seeds(), strategies.sizes(4, high=5), st.booleans())
def test_against_central_differences(seed, sizes, transposed):
    rng = np.random.default_rng(seed)
    x, heads = draw(rng, sizes, np.float64)
    check.against_central_differences(split_heads, (x,), rng, heads=heads, transposed=transposed)


@given(strategies.seeds(), strategies.sizes(4), st.booleans())
def test_merging_undoes_it_and_nothing_is_copied(seed, sizes, transposed):
    x, heads = draw(np.random.default_rng(seed), sizes, np.dtype(float))
    y, cache = split_heads.forward(x, heads, transposed)
    assert y.base is not None and np.shares_memory(y, x)
    np.testing.assert_array_equal(split_heads.backward(y, cache)[0], x)
    y = y.swapaxes(-1, -2) if transposed else y
    np.testing.assert_array_equal(merge_heads.forward(y)[0], x)


def test_rejects_bad_input():
    check.rejects_other_types(split_heads, (np.ones((2, 3, 6)),), heads=2)
    with pytest.raises(ShapeError, match=r"x has shape \(3, 6\); expected \(any, any, any\)"):
        split_heads.forward(np.ones((3, 6)), 2)
    with pytest.raises(ShapeError, match="x has 6 channels; expected a multiple of 4"):
        split_heads.forward(np.ones((2, 3, 6)), 4)
