"""soft_cross_entropy [SPEC 7]: distillation against a teacher's distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import DtypeError, NonFiniteError, ShapeError
from refimpl.ops import cross_entropy, soft_cross_entropy
from tests import check, strategies


def draw(rng, shape, dtype):
    return 3 * strategies.normal(rng, shape, dtype), strategies.probabilities(rng, shape, dtype)


@given(strategies.seeds(), strategies.sizes(2, high=12), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    logits, probabilities = draw(rng, shape, dtype)
    length = shape[0] * shape[1]
    check.against_mirror(soft_cross_entropy, (logits,), rng, length, probabilities=probabilities)


@given(strategies.seeds(), strategies.sizes(2))
def test_against_central_differences(seed, shape):
    rng = np.random.default_rng(seed)
    logits, probabilities = draw(rng, shape, np.float64)
    check.against_central_differences(
        soft_cross_entropy, (logits,), rng, probabilities=probabilities
    )


def test_a_certain_teacher_is_the_plain_cross_entropy():
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((5, 3)), np.array([0, 2, 1, 1, 0])
    loss, cache = soft_cross_entropy.forward(logits, np.eye(3)[target])
    expected, expected_cache = cross_entropy.forward(logits, target)
    assert loss == pytest.approx(expected, rel=1e-14)
    (dlogits,) = soft_cross_entropy.backward(0.7, cache)
    (expected_dlogits,) = cross_entropy.backward(0.7, expected_cache)
    np.testing.assert_allclose(dlogits, expected_dlogits, rtol=1e-13)


def test_rejects_bad_input():
    logits, probabilities = draw(np.random.default_rng(0), (4, 3), np.float64)
    with pytest.raises(DtypeError):
        soft_cross_entropy.forward(logits, probabilities.astype(np.float32))
    with pytest.raises(ShapeError, match="probabilities"):
        soft_cross_entropy.forward(logits, probabilities[:, :2])
    with pytest.raises(NonFiniteError):
        soft_cross_entropy.forward(np.full((4, 3), np.inf), probabilities)
