"""matmul [SPEC 1]: a b^T over the last axis of both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import matmul
from tests import check, strategies


@given(strategies.seeds(), strategies.sizes(5), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    batch, heads, rows, columns, inner = shape
    a = strategies.normal(rng, (batch, heads, rows, inner), dtype)
    b = strategies.normal(rng, (batch, heads, columns, inner), dtype)
    check.against_mirror(matmul, (a, b), rng, max(shape))


@given(strategies.seeds(), strategies.sizes(4, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    batch, rows, columns, inner = shape
    arrays = rng.standard_normal((batch, rows, inner)), rng.standard_normal((batch, columns, inner))
    check.against_central_differences(matmul, arrays, rng)


def test_signs_give_whole_numbers():
    rng = np.random.default_rng(0)
    a = strategies.binary(rng, (2, 3, 65), np.dtype(np.float32))
    b = strategies.binary(rng, (2, 4, 65), np.dtype(np.float32))
    exact = np.einsum("bmk,bnk->bmn", a.astype(np.int64), b.astype(np.int64))
    np.testing.assert_array_equal(matmul.forward(a, b)[0], exact)


def test_rejects_bad_input():
    check.rejects_other_types(matmul, (np.ones((2, 3, 4)), np.ones((2, 5, 4))))
    with pytest.raises(ShapeError):
        matmul.forward(np.ones((2, 3, 4)), np.ones((2, 4, 5)))
    with pytest.raises(ShapeError):
        matmul.forward(np.ones((2, 3, 4)), np.ones((1, 5, 4)))
    for a, b in ((np.ones((3, 4)), np.ones(4)), (np.ones(4), np.ones((3, 4)))):
        with pytest.raises(ShapeError, match="expected equal leading and last axes"):
            matmul.forward(a, b)
