"""resize_tokens [SPEC 6.3]: PyTorch, central differences, what is kept."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import resize_tokens
from tests import check, strategies

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))
FIRST = st.integers(0, 1)  # a class token or none


def draw(rng, grid, first, channels, dtype) -> np.ndarray:
    """(1, N, C), or (N,) where there are no channels."""
    tokens = first + grid[0] * grid[1]
    return strategies.normal(rng, (1, tokens, channels) if channels else (tokens,), dtype)


@given(strategies.seeds(), GRIDS, GRIDS, FIRST, st.sampled_from((0, 7)), strategies.floats())
def test_against_torch(seed, grid, new_grid, first, channels, dtype):
    rng = np.random.default_rng(seed)
    x = draw(rng, grid, first, channels, dtype)
    # sixteen neighbours; a small grid is read by many entries of a large one
    terms = 16 * max(1, new_grid[0] * new_grid[1])
    options = {"grid": grid, "new_grid": new_grid}
    check.against_mirror(resize_tokens, (x,), rng, terms, floor=1.0, **options)


@given(strategies.seeds(), GRIDS, GRIDS, FIRST, st.sampled_from((0, 2)))
def test_against_central_differences(seed, grid, new_grid, first, channels):
    rng = np.random.default_rng(seed)
    x = draw(rng, grid, first, channels, np.dtype(float))
    check.against_central_differences(resize_tokens, (x,), rng, grid=grid, new_grid=new_grid)


@pytest.mark.parametrize("shape", [(7,), (1, 7, 5)])
def test_the_class_token_is_kept_and_results_are_in_one_piece(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    y, cache = resize_tokens.forward(x, (2, 3), (4, 3))
    axis = len(shape) // 2
    assert y.shape == tuple(13 if n == 7 else n for n in shape) and y.flags.c_contiguous
    np.testing.assert_array_equal(y.take([0], axis), x.take([0], axis))
    (dx,) = resize_tokens.backward(y, cache)
    assert dx.shape == shape and dx.flags.c_contiguous
    np.testing.assert_array_equal(dx.take([0], axis), x.take([0], axis))


def test_rejects_bad_input():
    check.rejects_other_types(resize_tokens, (np.ones((1, 7, 5)),), grid=(2, 3), new_grid=(1, 2))
    for shape in ((1, 5, 4), (1, 9, 4), (2, 7, 4), (7, 4), (5,), (9,)):
        with pytest.raises(ShapeError, match=re.escape(f"x has shape {shape}; expected")):
            resize_tokens.forward(np.ones(shape), (2, 3), (1, 2))
