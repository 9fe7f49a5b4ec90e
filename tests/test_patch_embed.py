"""patch_embed [SPEC 6.3]: PyTorch, central differences, order of patches and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from refimpl.conventions import ShapeError
from refimpl.ops import patch_embed
from tests import check, strategies


def draw(rng, shape, dtype):
    batch, channels, dim, p, rows, columns = shape
    return (
        strategies.normal(rng, (batch, channels, rows * p, columns * p), dtype),
        strategies.normal(rng, (dim, channels, p, p), dtype),
        strategies.normal(rng, (dim,), dtype),
    )


@given(strategies.seeds(), strategies.sizes(6, high=7), strategies.floats())
def test_against_torch(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    batch, channels, dim, p, rows, columns = shape
    length = max(channels * p * p, batch * rows * columns, dim)
    check.against_mirror(patch_embed, draw(rng, shape, dtype), rng, length, floor=1.0)


def test_against_central_differences():
    rng = np.random.default_rng(0)
    arrays = draw(rng, (2, 3, 4, 2, 1, 3), np.float64)
    check.against_central_differences(patch_embed, arrays, rng)


def test_patches_lie_row_by_row():
    image = np.arange(16.0).reshape(1, 1, 4, 4)
    weight = np.array([[[[1.0, 100.0], [0.0, 0.0]]]])
    y, _ = patch_embed.forward(image, weight, np.array([0.5]))
    np.testing.assert_array_equal(y[0, :, 0], [100.5, 302.5, 908.5, 1110.5])


def test_rejects_bad_input():
    image, weight, bias = draw(np.random.default_rng(0), (2, 3, 4, 5, 1, 2), np.float64)
    check.rejects_other_types(patch_embed, (image, weight, bias))
    with pytest.raises(ShapeError, match="multiples of 5"):
        patch_embed.forward(image[:, :, :4], weight, bias)
    with pytest.raises(ShapeError, match="image"):
        patch_embed.forward(image[:, :2], weight, bias)
    with pytest.raises(ShapeError, match="weight"):
        patch_embed.forward(image, weight[:, :, :4], bias)
    with pytest.raises(ShapeError, match="weight"):
        patch_embed.forward(image, np.ones(()), bias)
    with pytest.raises(ShapeError, match="multiples of 0"):
        patch_embed.forward(image, weight[:, :, :0, :0], bias)


def test_no_image_is_no_error():
    image, weight, bias = draw(np.random.default_rng(0), (2, 3, 4, 5, 1, 2), np.float64)
    of_some, _ = patch_embed.forward(image, weight, bias)
    y, cache = patch_embed.forward(image[:0], weight, bias)
    assert y.shape == (0, *of_some.shape[1:])
    dimage, dweight, dbias = patch_embed.backward(y, cache)
    assert dimage.shape == (0, *image.shape[1:])
    np.testing.assert_array_equal(dweight, np.zeros(weight.shape))
    np.testing.assert_array_equal(dbias, np.zeros(bias.shape))
