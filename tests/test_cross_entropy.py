"""cross_entropy with label smoothing [SPEC 1, 7]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import DataError, NonFiniteError, ShapeError
from refimpl.ops import cross_entropy
from tests import check, strategies

SMOOTHING = st.sampled_from([0.0, 0.05, 0.3])


def draw(rng, shape, dtype):
    return 3 * strategies.normal(rng, shape, dtype), rng.integers(shape[1], size=shape[0])


@given(strategies.seeds(), strategies.sizes(2, high=12), strategies.floats(), SMOOTHING)
def test_against_torch(seed, shape, dtype, smoothing):
    rng = np.random.default_rng(seed)
    logits, target = draw(rng, shape, dtype)
    check.against_mirror(
        cross_entropy, (logits,), rng, shape[0] * shape[1], target=target, smoothing=smoothing
    )


@given(strategies.seeds(), strategies.sizes(2), SMOOTHING)
def test_against_central_differences(seed, shape, smoothing):
    rng = np.random.default_rng(seed)
    logits, target = draw(rng, shape, np.float64)
    check.against_central_differences(
        cross_entropy, (logits,), rng, target=target, smoothing=smoothing
    )


def test_smoothing_is_shared_by_all_classes_and_the_loss_is_a_mean():
    logits, target = np.log(np.array([[1.0, 1.0, 2.0], [4.0, 3.0, 1.0]])), np.array([2, 0])
    rows = [np.log([1 / 4, 1 / 4, 1 / 2]), np.log([4 / 8, 3 / 8, 1 / 8])]
    plain = -(rows[0][2] + rows[1][0]) / 2
    uniform = -(rows[0].mean() + rows[1].mean()) / 2
    for e in (0.0, 0.3):
        loss, _ = cross_entropy.forward(logits, target, e)
        assert loss == pytest.approx((1 - e) * plain + e * uniform, rel=1e-14)


def test_large_logits_do_not_overflow():
    loss, cache = cross_entropy.forward(np.array([[1000.0, -1000.0]]), np.array([1]))
    assert loss == 2000
    np.testing.assert_array_equal(cross_entropy.backward(3.0, cache)[0], [[3, -3]])


def test_rejects_bad_input():
    logits, target = draw(np.random.default_rng(0), (4, 3), np.float64)
    check.rejects_other_types(cross_entropy, (logits,), target=target)
    with pytest.raises(ShapeError, match="target"):
        cross_entropy.forward(logits, target[:3])
    for label in (-1, 3):
        with pytest.raises(DataError, match=f"label {label}"):
            cross_entropy.forward(logits, np.array([0, 1, label, 2]))
    with pytest.raises(NonFiniteError):
        cross_entropy.forward(logits * np.nan, target)
