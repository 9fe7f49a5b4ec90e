"""window_softmax [SPEC 6.7]: PyTorch with Swin's mask, central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import NonFiniteError, ShapeError
from refimpl.ops import window_softmax
from tests import check, strategies


@st.composite
def places(draw: st.DrawFn, most: int = 4) -> dict:
    """Arguments of forward: shifted windows on grids of different sides."""
    window = draw(st.integers(2, most))
    rows, columns = draw(strategies.sizes(2, low=1, high=3))
    shift = draw(st.integers(1, window - 1))
    return {"grid": (rows * window, columns * window), "window": window, "shift": shift}


def draw_scores(rng, place: dict, dtype, batch: int = 2, heads: int = 3) -> np.ndarray:
    keys = place["window"] ** 2
    count = batch * place["grid"][0] * place["grid"][1] // keys
    return strategies.normal(rng, (count, heads, keys, keys), dtype)


@given(strategies.seeds(), places(), strategies.floats())
def test_against_torch(seed, place, dtype):
    rng = np.random.default_rng(seed)
    x = 3 * draw_scores(rng, place, dtype)
    check.against_mirror(window_softmax, (x,), rng, place["window"] ** 2, **place)


@given(strategies.seeds(), places(most=2))
def test_against_central_differences(seed, place):
    rng = np.random.default_rng(seed)
    x = draw_scores(rng, place, np.dtype(float), batch=1, heads=1)
    check.against_central_differences(window_softmax, (x,), rng, **place)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rejects_bad_input(bad):
    place = {"grid": (2, 4), "window": 2, "shift": 1}
    check.rejects_other_types(window_softmax, (np.ones((2, 3, 4, 4)),), **place)
    for shape in ((3, 3, 4, 4), (2, 3, 4, 5), (2, 4, 4)):
        with pytest.raises(ShapeError, match="window_softmax: x has shape"):
            window_softmax.forward(np.ones(shape), **place)
    x = np.ones((2, 3, 4, 4))
    x[1, 2, 0, 3] = bad  # also where it is masked: a NaN is never hidden
    with pytest.raises(NonFiniteError, match=r"softmax.*\[1, 2, 0, 3\]"):
        window_softmax.forward(x, **place)
