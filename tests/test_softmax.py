"""softmax over the last axis: PyTorch, central differences, large inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import NonFiniteError
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
