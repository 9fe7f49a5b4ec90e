"""binary_linear [SPEC 2, 5]: stages, the integer product, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, NonFiniteError, ShapeError
from refimpl.ops import binary_linear
from tests import check, strategies

STAGES = st.sampled_from(["full", "activations", "none"])
STES = st.sampled_from(["polynomial", "clip"])


@given(
    strategies.seeds(),
    strategies.sizes(4, high=12),
    strategies.floats(),
    STAGES,
    STES,
    st.booleans(),
)
def test_against_torch(seed, shape, dtype, binarize, ste, with_bias):
    rng = np.random.default_rng(seed)
    batch, tokens, inputs, outputs = shape
    x = strategies.on_grid(rng, (batch, tokens, inputs), dtype, (0.0, -0.0, 1.0, -1.0))
    weight = strategies.weight(rng, (outputs, inputs), dtype)
    bias = strategies.normal(rng, (outputs,), dtype) if with_bias else None
    length = max(inputs, outputs, batch * tokens)
    check.against_mirror(
        binary_linear, (x, weight, bias), rng, length, floor=1.0, binarize=binarize, ste=ste
    )


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 63, 64, 65, 127, 192, 384])
def test_it_is_the_integer_product_times_the_scale(inputs):
    rng = np.random.default_rng(inputs)
    x, weight = rng.standard_normal((3, inputs)), rng.standard_normal((5, inputs))
    y, _ = binary_linear.forward(x, weight)
    centred = weight - weight.mean(axis=1, keepdims=True)
    dots = np.array([[int(((r >= 0) == (c >= 0)).sum()) for c in centred] for r in x])
    dots = 2 * dots - inputs
    np.testing.assert_array_equal(y, dots * np.abs(weight).mean(axis=1))


def test_stages_by_literal_values():
    x, weight = np.array([[0.3, -0.0, -4.0]]), np.array([[4.0, 1.0, -2.0]])
    assert binary_linear.forward(x, weight)[0].item() == 3 * (7 / 3)  # + + - on + + -
    assert binary_linear.forward(x, weight, binarize="activations")[0].item() == 4 + 1 + 2
    assert binary_linear.forward(x, weight, binarize="none")[0].item() == 0.3 * 4 + 8


@given(strategies.seeds(), strategies.sizes(4))
def test_stage_none_is_smooth(seed, shape):
    rng = np.random.default_rng(seed)
    batch, tokens, inputs, outputs = shape
    arrays = tuple(
        rng.standard_normal(s) for s in ((batch, tokens, inputs), (outputs, inputs), (outputs,))
    )
    check.against_central_differences(binary_linear, arrays, rng, binarize="none")


def test_rejects_bad_input():
    check.rejects_other_types(binary_linear, (np.ones((2, 3)), np.ones((4, 3)), np.ones(4)))
    with pytest.raises(ShapeError, match=r"weight has shape \(4, 5\)"):
        binary_linear.forward(np.ones((2, 3)), np.ones((4, 5)))
    with pytest.raises(ShapeError, match="bias"):
        binary_linear.forward(np.ones((2, 3)), np.ones((4, 3)), np.ones(3))
    with pytest.raises(ConfigError, match="binarize"):
        binary_linear.forward(np.ones((2, 3)), np.ones((4, 3)), binarize="half")
    with pytest.raises(NonFiniteError):
        binary_linear.forward(np.array([[1.0, np.nan]]), np.ones((4, 2)))
