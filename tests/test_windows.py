"""windows [SPEC 6.7]: the roll and the cut, their inverse, and what the roll must not mix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import windows
from tests import check, strategies


@st.composite
def places(draw: st.DrawFn) -> dict:
    """Arguments of forward: every window, every shift, grids of different sides."""
    window = draw(st.integers(1, 4))
    rows, columns = draw(strategies.sizes(2, low=1, high=4))
    shift = draw(st.integers(0, window - 1))
    return {"grid": (rows * window, columns * window), "window": window, "shift": shift}


def draw_x(rng, place: dict, dtype) -> np.ndarray:
    return strategies.normal(rng, (3, np.prod(place["grid"]), 5), dtype)


@given(strategies.seeds(), places(), strategies.floats())
def test_against_torch(seed, place, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(windows, (draw_x(rng, place, dtype),), rng, 1, **place)


@given(strategies.seeds(), places(), strategies.floats())
def test_backward_is_the_inverse_and_the_adjoint(seed, place, dtype):
    rng = np.random.default_rng(seed)
    x = draw_x(rng, place, dtype)
    y, cache = windows.forward(x, **place)
    np.testing.assert_array_equal(windows.backward(y, cache)[0], x)
    np.testing.assert_array_equal(np.sort(y, axis=None), np.sort(x, axis=None))


@given(places())
def test_mask_from_the_distance_on_the_grid(place):
    """Two tokens of a window see each other if the roll has not brought them together."""
    (gh, gw), window = place["grid"], place["window"]
    numbers = np.arange(gh * gw, dtype=float).reshape(1, -1, 1)
    tokens = windows.forward(numbers, **place)[0][..., 0].astype(int)  # (nW, M*M)
    rows, columns = tokens // gw, tokens % gw
    near = np.ones((*tokens.shape, tokens.shape[1]), bool)
    inside = np.indices((window, window)).reshape(2, -1)
    for place_of, own in ((rows, inside[0]), (columns, inside[1])):
        # as far from one another on the grid as in the window
        near &= (place_of[:, :, None] - place_of[:, None]) == own[:, None] - own
    np.testing.assert_array_equal(windows.mask(**place), near)


def test_without_a_shift_nothing_is_masked():
    assert windows.mask((6, 4), window=2, shift=0).all()


def test_rejects_bad_input():
    check.rejects_other_types(windows, (np.ones((2, 12, 4)),), grid=(2, 6), window=2)
    with pytest.raises(ShapeError, match=r"\(2, 13, 4\); expected \(any, 12, any\)"):
        windows.forward(np.ones((2, 13, 4)), (2, 6), 2)
    for window, shift in ((0, 0), (-2, 0), (4, 0), (2, 2), (2, -1)):
        with pytest.raises(ShapeError, match="a grid of 2 x 6.*expected a grid of whole windows"):
            windows.forward(np.ones((2, 12, 4)), (2, 6), window, shift)
