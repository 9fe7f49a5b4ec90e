"""join_windows [SPEC 6.7]: PyTorch, the inverse of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import join_windows, windows
from tests import check, strategies
from tests.test_windows import draw_x, places


@given(strategies.seeds(), places(), strategies.floats())
def test_against_torch(seed, place, dtype):
    rng = np.random.default_rng(seed)
    x, _ = windows.forward(draw_x(rng, place, dtype), **place)
    check.against_mirror(join_windows, (x,), rng, **place)


@given(strategies.seeds(), places(), strategies.floats())
def test_it_undoes_windows(seed, place, dtype):
    x = draw_x(np.random.default_rng(seed), place, dtype)
    y, _ = windows.forward(x, **place)
    np.testing.assert_array_equal(join_windows.forward(y, **place)[0], x)


def test_rejects_bad_input():
    options = {"grid": (2, 6), "window": 2}
    check.rejects_other_types(join_windows, (np.ones((3, 4, 5)),), **options)
    with pytest.raises(ShapeError, match=r"\(3, 9, 5\); expected \(any, 4, any\)"):
        join_windows.forward(np.ones((3, 9, 5)), **options)
    with pytest.raises(ShapeError, match=r"\(4, 4, 5\); expected 3 windows for each image"):
        join_windows.forward(np.ones((4, 4, 5)), **options)
    with pytest.raises(ShapeError, match="a grid of 2 x 6.*expected a grid of whole windows"):
        join_windows.forward(np.ones((3, 4, 5)), **options, shift=2)
