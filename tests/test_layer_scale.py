"""layer_scale [SPEC 6.1]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import layer_scale
from tests import check, strategies


def draw(rng, shape, dtype):
    return tuple(strategies.normal(rng, s, dtype) for s in (shape, shape[-1:], shape[-1:]))


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, shape, dtype)
    check.against_mirror(layer_scale, arrays, rng, shape[0] * shape[1], floor=1.0)


@given(strategies.seeds(), strategies.sizes(3), strategies.floats())
def test_without_shift_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    arrays = (*draw(rng, shape, dtype)[:2], None)
    check.against_mirror(layer_scale, arrays, rng, shape[0] * shape[1], floor=1.0)


@given(strategies.seeds(), strategies.sizes(3, high=5))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    check.against_central_differences(layer_scale, draw(rng, shape, np.float64), rng)


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4), np.float64)
    check.rejects_other_types(layer_scale, arrays)
    with pytest.raises(ShapeError, match="alpha"):
        layer_scale.forward(arrays[0], np.ones(3), arrays[2])
    with pytest.raises(ShapeError, match="beta"):
        layer_scale.forward(arrays[0], arrays[1], np.ones(1))
