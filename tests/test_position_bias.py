"""position_bias [SPEC 6.7]: PyTorch, differences, the table's rows by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import position_bias
from tests import check, strategies

WINDOWS = st.integers(1, 4)


def draw(rng, window: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 2 images or windows and 3 heads, and a table."""
    x = strategies.normal(rng, (2, 3, window**2, window**2), dtype)
    return x, strategies.normal(rng, ((2 * window - 1) ** 2, 3), dtype)


@given(strategies.seeds(), WINDOWS, strategies.floats())
def test_against_torch(seed, window, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(position_bias, draw(rng, window, dtype), rng, 2 * window**2)


@given(strategies.seeds(), st.integers(1, 3))
def test_against_central_differences(seed, window):
    rng = np.random.default_rng(seed)
    check.against_central_differences(position_bias, draw(rng, window, np.float64), rng)


def test_rows_of_the_table_by_hand():
    """Windows of 2 x 2: (down, right) = (-1, -1) is row 0, (0, 0) row 4, (1, 1) row 8."""
    np.testing.assert_array_equal(
        position_bias.offsets(2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    )


def test_rejects_bad_input():
    check.rejects_other_types(position_bias, (np.ones((2, 3, 4, 4)), np.ones((9, 3))))
    with pytest.raises(ShapeError, match="6 keys; expected a square"):
        position_bias.forward(np.ones((2, 3, 6, 6)), np.ones((9, 3)))
    with pytest.raises(ShapeError, match=r"table has shape \(9, 2\); expected \(9, 3\)"):
        position_bias.forward(np.ones((2, 3, 4, 4)), np.ones((9, 2)))
