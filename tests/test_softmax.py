"""softmax over the last axis: PyTorch, central differences, large inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import NonFiniteError, ShapeError
from refimpl.ops import softmax
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(softmax, (3 * strategies.normal(rng, shape, dtype),), rng, shape[-1])


@given(strategies.seeds(), strategies.sizes(2))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(softmax, (rng.standard_normal(shape),), rng)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_large_inputs_do_not_overflow(dtype):
    x = np.array([[1000, 1000, -1000], [-3e4, -3e4, -3e4]], dtype)
    y, _ = softmax.forward(x)
    np.testing.assert_allclose(y, [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rejects_bad_input(bad):
    with pytest.raises(NonFiniteError, match=r"softmax.*\[0, 1\]"):
        softmax.forward(np.array([[1.0, bad]]))
    check.rejects_other_types(softmax, (np.ones((2, 3)),))
    with pytest.raises(ShapeError, match="at least one value in a row"):
        softmax.forward(np.ones((2, 0)))


def draw_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """For the last two axes; every row keeps something."""
    mask = rng.random(shape[-2:]) < 0.5
    mask[np.arange(shape[-2]), rng.integers(shape[-1], size=shape[-2])] = True
    return mask


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_masked_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    x, mask = 3 * strategies.normal(rng, shape, dtype), draw_mask(rng, shape)
    check.against_mirror(softmax, (x,), rng, shape[-1], mask=mask)
    y, cache = softmax.forward(x, mask)
    (dx,) = softmax.backward(np.ones_like(x), cache)
    hidden = np.broadcast_to(~mask, shape)
    assert (y[hidden] == 0).all() and (dx[hidden] == 0).all()


@given(strategies.seeds(), strategies.sizes(2))
def test_masked_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    options = {"mask": draw_mask(rng, shape)}
    check.against_central_differences(softmax, (rng.standard_normal(shape),), rng, **options)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_what_is_masked_may_be_of_any_size(dtype):
    largest = np.finfo(dtype).max
    x = np.array([[largest, 1, 1], [-largest, -3, -3]], dtype)
    y, _ = softmax.forward(x, np.array([False, True, True]))
    np.testing.assert_array_equal(y, [[0, 0.5, 0.5], [0, 0.5, 0.5]])


def test_rejects_a_mask_that_leaves_nothing():
    with pytest.raises(ShapeError, match="the mask leaves nothing of a row"):
        softmax.forward(np.ones((2, 3)), np.array([[True, True, False], [False, False, False]]))
