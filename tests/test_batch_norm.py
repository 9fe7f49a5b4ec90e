"""batch_norm [SPEC 6.8]: PyTorch's in evaluation mode, central differences, frozen statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import batch_norm
from tests import check, strategies


def draw(rng, shape, dtype):
    channels = shape[-1:]
    normal = [strategies.normal(rng, s, dtype) for s in (shape, channels, channels, channels)]
    return (*normal, rng.uniform(0.5, 2.0, channels).astype(dtype))


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, shape, dtype)
    check.against_mirror(batch_norm, arrays, rng, 4 * shape[0] * shape[1], floor=1.0, eps=1e-3)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    x, weight, bias, mean, variance = draw(rng, shape, np.float64)

    class Unfrozen:  # what has a gradient
        __name__ = batch_norm.__name__

        @staticmethod
        def forward(x, weight, bias):
            return batch_norm.forward(x, weight, bias, mean, variance, eps=0.1)

        @staticmethod
        def backward(dy, cache):
            return batch_norm.backward(dy, cache)[:3]

    check.against_central_differences(Unfrozen(), (x, weight, bias), rng)


def test_no_step_moves_the_statistics():
    rng = np.random.default_rng(0)
    y, cache = batch_norm.forward(*draw(rng, (2, 3, 4), np.float64), eps=1e-5)
    *_, dmean, dvariance = batch_norm.backward(rng.standard_normal(y.shape), cache)
    assert dmean.tolist() == dvariance.tolist() == [0.0] * 4


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4), np.float64)
    check.rejects_other_types(batch_norm, arrays, eps=1e-5)
    for index, name in enumerate(("weight", "bias", "mean", "variance"), start=1):
        wrong = [np.ones(3) if i == index else array for i, array in enumerate(arrays)]
        with pytest.raises(ShapeError, match=rf"{name} has shape \(3,\); expected \(4\)"):
            batch_norm.forward(*wrong, eps=1e-5)
