"""linear: PyTorch, central differences."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ShapeError
from refimpl.ops import linear
from tests import check, strategies


def draw(rng, shape, dtype, with_bias):
    batch, tokens, inputs, outputs = shape
    return (
        strategies.normal(rng, (batch, tokens, inputs), dtype),
        strategies.normal(rng, (outputs, inputs), dtype),
        strategies.normal(rng, (outputs,), dtype) if with_bias else None,
    )


@given(strategies.seeds(), strategies.sizes(4), strategies.floats(), st.booleans())
def test_against_torch(seed, shape, dtype, with_bias):
    rng = np.random.default_rng(seed)
    length = max(shape[0] * shape[1], *shape)
    arrays = draw(rng, shape, dtype, with_bias)
    check.against_mirror(linear, arrays, rng, length, floor=1.0)


@given(strategies.seeds(), strategies.sizes(4, high=5), st.booleans())
def test_against_central_differences(seed, shape, with_bias):
    rng = np.random.default_rng(seed)
    check.against_central_differences(linear, draw(rng, shape, np.float64, with_bias), rng)


def test_vectors_and_matrices_of_tokens_are_taken_too():
    weight = np.array([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    y, cache = linear.forward(np.array([[1.0, 2.0]]), weight)
    np.testing.assert_array_equal(y, [[11, 17, 23]])
    dx, dweight, dbias = linear.backward(np.array([[1.0, 0.0, 2.0]]), cache)
    np.testing.assert_array_equal(dx, [[17, 20]])
    np.testing.assert_array_equal(dweight, [[1, 2], [0, 0], [2, 4]])
    assert dbias is None


ALONE_AND_TOGETHER = """
import numpy as np
from refimpl.ops import linear
rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for tokens, inputs, outputs in ((50, 16, 64), (65, 48, 128), (65, 128, 512), (7, 10, 11)):
        x = rng.standard_normal((30, tokens, inputs)).astype(dtype)
        weight = rng.standard_normal((outputs, inputs)).astype(dtype)
        together, _ = linear.forward(x, weight)
        alone = [linear.forward(image[None], weight)[0][0] for image in x]
        assert np.array_equal(together, alone), (dtype, tokens, inputs, outputs)
"""


@pytest.mark.parametrize("kernel", ["Haswell", None])  # of OpenBLAS, where that has one to choose
def test_the_bits_of_an_image_do_not_depend_on_its_batch(kernel):
    chosen = {} if kernel is None else {"OPENBLAS_CORETYPE": kernel}
    command = [sys.executable, "-c", ALONE_AND_TOGETHER]
    subprocess.run(command, check=True, env=os.environ | chosen)


def test_rejects_bad_input():
    arrays = draw(np.random.default_rng(0), (2, 3, 4, 5), np.float64, True)
    check.rejects_other_types(linear, arrays)
    with pytest.raises(ShapeError, match="weight"):
        linear.forward(arrays[0], arrays[1].T)
    with pytest.raises(ShapeError, match="bias"):
        linear.forward(arrays[0], arrays[1], np.ones(4))
