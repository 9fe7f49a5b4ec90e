"""fit [SPEC 5]: the shortcut around a projection that changes the number of channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import fit
from tests import check, strategies, tolerances

# (inputs, outputs) as multiples of a common factor
RATIOS = st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (4, 1)])


def draw(seed, shape, ratio, dtype):
    rng = np.random.default_rng(seed)
    x = strategies.normal(rng, (*shape[:2], shape[2] * ratio[0]), dtype)
    return rng, x, shape[2] * ratio[1]


@given(strategies.seeds(), strategies.sizes(3), strategies.floats(), RATIOS)
def test_it_is_the_matrix_of_its_definition(seed, shape, dtype, ratio):
    rng, x, outputs = draw(seed, shape, ratio, dtype)
    inputs = x.shape[-1]
    o, i = np.indices((outputs, inputs))
    if outputs >= inputs:
        matrix = (o % inputs == i).astype(np.float64)
    else:
        group = inputs // outputs
        matrix = (i // group == o) / group
    (y,), (dy,), (dx,) = check.run(fit, (x,), rng, outputs=outputs)
    allowed = tolerances.relative(dtype, 4)
    assert tolerances.disagreement(y, x @ matrix.T) <= allowed
    assert tolerances.disagreement(dx, dy @ matrix) <= allowed


@given(strategies.seeds(), strategies.sizes(3, high=4), RATIOS)
def test_against_central_differences(seed, shape, ratio):
    rng, x, outputs = draw(seed, shape, ratio, np.float64)
    check.against_central_differences(fit, (x,), rng, outputs=outputs)


def test_wider_is_tiled_and_narrower_is_averaged_side_by_side():
    x = np.array([1.0, 2.0, 5.0, 8.0])
    np.testing.assert_array_equal(fit.forward(x, 8)[0], [1, 2, 5, 8, 1, 2, 5, 8])
    np.testing.assert_array_equal(fit.forward(x, 2)[0], [1.5, 6.5])
    np.testing.assert_array_equal(fit.forward(x, 4)[0], x)


def test_rejects_bad_input():
    check.rejects_other_types(fit, (np.ones((2, 3, 4)),), outputs=8)
    with pytest.raises(ShapeError, match="divisor or multiple of 6"):
        fit.forward(np.ones((2, 3, 4)), 6)
    for x, outputs in ((np.ones((2, 0)), 4), (np.ones(()), 4), (np.ones((2, 4)), 0)):
        with pytest.raises(ShapeError, match="expected at least 1 each"):
            fit.forward(x, outputs)
