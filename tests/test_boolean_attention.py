"""boolean_attention [SPEC 2, 6.1]: the integer product, stages, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, NonFiniteError, ShapeError
from refimpl.ops import boolean_attention
from tests import check, strategies

STAGES = st.sampled_from(["full", "activations", "none"])


@given(
    strategies.seeds(),
    strategies.sizes(4, high=8),
    strategies.floats(),
    STAGES,
    st.booleans(),
    st.sampled_from(boolean_attention.CONTEXTS),
)
def test_against_torch(seed, shape, dtype, binarize, per_head, context):
    rng = np.random.default_rng(seed)
    batch, heads, head_dim, tokens = shape
    prob = strategies.probabilities(rng, (batch, heads, tokens, tokens), dtype)
    # The diagonal sits on the threshold of the first head, q = 1/2.
    prob[:, :, np.arange(tokens), np.arange(tokens)] = 0.125
    value = strategies.binary(rng, (batch, heads, head_dim, tokens), dtype)
    alpha = np.linspace(0.25, 0.5, heads).astype(dtype).reshape(heads, 1, 1)
    if not per_head:
        alpha = np.array(0.25, dtype)
    check.against_mirror(
        boolean_attention, (prob, value, alpha), rng, prob.size, floor=1.0, binarize=binarize,
        context=context,
    )


def test_it_counts_bits():
    # popcounts by hand: query 0 sees keys 0 and 2, query 1 none
    prob = np.array([[[[0.5, 0.1, 0.4], [0.25, 0.125, 0.2]]]])
    value = np.array([[[[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]]])
    context, _ = boolean_attention.forward(prob, value, np.array(0.5))
    np.testing.assert_array_equal(context, [[[[1, 0], [0, 0]]]])


def test_stage_none_uses_real_probabilities_and_alpha_has_no_gradient():
    rng = np.random.default_rng(0)
    prob = strategies.probabilities(rng, (2, 3, 5, 5), np.float64)
    value = strategies.binary(rng, (2, 3, 4, 5), np.float64)
    alpha = np.full((3, 1, 1), 0.2)
    context, cache = boolean_attention.forward(prob, value, alpha, binarize="none")
    np.testing.assert_allclose(context, np.einsum("bhqk,bhdk->bhqd", prob, value), rtol=1e-13)
    *_, dalpha = boolean_attention.backward(rng.standard_normal(context.shape), cache)
    np.testing.assert_array_equal(dalpha, np.zeros((3, 1, 1)))


def test_rejects_bad_input():
    prob, value, alpha = np.full((1, 2, 3, 3), 0.3), np.ones((1, 2, 4, 3)), np.array(0.5)
    check.rejects_other_types(boolean_attention, (prob, value, alpha))
    with pytest.raises(ShapeError):
        boolean_attention.forward(prob, value.swapaxes(-1, -2), alpha)
    with pytest.raises(ConfigError, match="binarize"):
        boolean_attention.forward(prob, value, alpha, binarize="half")
    with pytest.raises(NonFiniteError):
        boolean_attention.forward(prob * np.nan, value, alpha)


@given(strategies.seeds(), strategies.sizes(3, high=5), STAGES)
def test_differences_are_those_of_pairs(seed, sizes, stage):
    """[R1b] Term by term: every one of a query's bits counts v_j - v_i."""
    rng = np.random.default_rng(seed)
    (heads, tokens, d), alpha = sizes, np.array(0.4)
    prob, value = rng.random((2, heads, tokens, tokens)), strategies.binary(
        rng, (2, heads, d, tokens), np.dtype(float)
    )
    found, _ = boolean_attention.forward(
        prob, value, alpha, binarize=stage, context="differences"
    )
    bit = prob if stage == "none" else 0.4 * (prob / 0.4 > 0.5)
    expected = np.zeros((2, heads, tokens, d))
    for i in range(tokens):
        for j in range(tokens):
            term = value[..., j] - value[..., i]  # (2, heads, d)
            expected[:, :, i] += bit[:, :, i, j, None] * term
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_differences_need_a_query_for_every_key():
    prob, value = np.ones((1, 1, 2, 3)), np.ones((1, 1, 4, 3))
    with pytest.raises(ShapeError, match="expected a query for every key"):
        boolean_attention.forward(prob, value, np.array(0.5), context="differences")
