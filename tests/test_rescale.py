"""rescale [SPEC 6.3]: PyTorch, central differences, a number alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.ops import rescale
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(2), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    check.against_mirror(rescale, (strategies.normal(rng, shape, dtype),), rng, factor=7 / 36)


@given(strategies.seeds(), strategies.sizes(2))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(rescale, (rng.standard_normal(shape),), rng, factor=-1.7)


@pytest.mark.parametrize("dtype", strategies.FLOATS, ids=str)
def test_a_number_stays_an_array_of_its_type(dtype):
    """alpha of a layer has no axes; the factor is rounded to its type before it multiplies."""
    y, cache = rescale.forward(np.array(3, dtype), 0.3)
    for value in (y, rescale.backward(np.array(3, dtype), cache)[0]):
        assert isinstance(value, np.ndarray) and (value.shape, value.dtype) == ((), dtype)
        assert value == dtype.type(3) * dtype.type(0.3)


def test_rejects_bad_input():
    check.rejects_other_types(rescale, (np.ones((2, 3)),), factor=2.0)
