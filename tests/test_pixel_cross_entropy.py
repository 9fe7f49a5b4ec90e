"""pixel_cross_entropy with an ignored label [SPEC 10]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import DataError, NonFiniteError, ShapeError
from refimpl.ops import cross_entropy, pixel_cross_entropy
from tests import check, strategies

SMOOTHING = st.sampled_from([0.0, 0.05, 0.3])


def draw(rng, shape, dtype):
    """logits (B, K, H, W) and uint8 labels, a third of them ignored, at least one not."""
    batch, classes, *size = shape
    target = rng.integers(classes, size=(batch, *size)).astype(np.uint8)
    target[rng.random(target.shape) < 1 / 3] = 255
    target[0, 0, 0] = classes - 1
    return 3 * strategies.normal(rng, shape, dtype), target


@given(strategies.seeds(), strategies.sizes(4), strategies.floats(), SMOOTHING)
def test_against_torch(seed, shape, dtype, smoothing):
    rng = np.random.default_rng(seed)
    logits, target = draw(rng, shape, dtype)
    options = {"target": target, "smoothing": smoothing}
    check.against_mirror(pixel_cross_entropy, (logits,), rng, logits.size, **options)


@given(strategies.seeds(), st.sampled_from([(2, 3, 2, 2), (1, 4, 2, 3), (3, 2, 1, 2)]), SMOOTHING)
def test_against_central_differences(seed, shape, smoothing):
    rng = np.random.default_rng(seed)
    logits, target = draw(rng, shape, np.float64)
    options = {"target": target, "smoothing": smoothing}
    check.against_central_differences(pixel_cross_entropy, (logits,), rng, **options)


def test_an_ignored_pixel_has_no_part_in_loss_or_gradient():
    rng = np.random.default_rng(0)
    logits, target = draw(rng, (2, 3, 4, 5), np.float64)
    loss, cache = pixel_cross_entropy.forward(logits, target)
    (dlogits,) = pixel_cross_entropy.backward(1.0, cache)
    ignored = target == 255
    assert (dlogits.transpose(0, 2, 3, 1)[ignored] == 0).all()
    changed = logits.transpose(0, 2, 3, 1).copy()
    changed[ignored] = np.nan
    assert pixel_cross_entropy.forward(changed.transpose(0, 3, 1, 2), target)[0] == loss


def test_the_mean_is_over_the_pixels_of_the_batch_and_not_over_its_images():
    logits = np.log(np.array([[1.0, 3.0], [1.0, 7.0]]))[:, :, None, None]  # one pixel an image
    logits = np.repeat(logits, 3, axis=3)
    target = np.array([[[1, 255, 255]], [[1, 1, 1]]])
    loss, _ = pixel_cross_entropy.forward(logits, target)
    assert loss == pytest.approx(-(np.log(3 / 4) + 3 * np.log(7 / 8)) / 4, rel=1e-14)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_without_any_label_loss_and_gradient_are_zero(dtype):
    logits = np.ones((2, 3, 4, 5), dtype)
    loss, cache = pixel_cross_entropy.forward(logits, np.full((2, 4, 5), 255, np.uint8))
    (dlogits,) = pixel_cross_entropy.backward(3.0, cache)
    assert loss == 0
    assert loss.dtype == dlogits.dtype == dtype
    np.testing.assert_array_equal(dlogits, np.zeros_like(logits))


def test_another_value_may_be_the_ignored_one():
    rng = np.random.default_rng(1)
    logits, target = draw(rng, (2, 3, 4, 5), np.float64)
    other = np.where(target == 255, -1, target.astype(int))
    expected = cross_entropy.forward(
        logits.transpose(0, 2, 3, 1)[target != 255], target[target != 255]
    )
    assert pixel_cross_entropy.forward(logits, other, ignored=-1)[0] == expected[0]


def test_rejects_bad_input():
    logits, target = draw(np.random.default_rng(0), (2, 3, 4, 5), np.float64)
    check.rejects_other_types(pixel_cross_entropy, (logits,), target=target)
    with pytest.raises(ShapeError, match="target"):
        pixel_cross_entropy.forward(logits, target[:, :3])
    with pytest.raises(ShapeError, match="logits"):
        pixel_cross_entropy.forward(logits[0], target)
    with pytest.raises(DataError, match="label 3"):
        pixel_cross_entropy.forward(logits, np.where(target == 255, 3, target))
    with pytest.raises(NonFiniteError):
        pixel_cross_entropy.forward(logits * np.nan, target)
