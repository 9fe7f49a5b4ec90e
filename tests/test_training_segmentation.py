"""Training on label maps [SPEC 10]: the mean is over the labelled pixels of the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import refimpl
from refimpl import ops
from refimpl.data.preprocessing import Preprocessing
from refimpl.training import batches, losses
from tests import tolerances

SIZE = (8, 12)
PREPARE = Preprocessing.plain(SIZE, 1).apply_array


def lesson(ignored: float = 0.0, size: tuple[int, int] = SIZE):
    """A tiny segmenter, float64 parameters, images and labels: more and more are ignored."""
    sizes = {"image_size": SIZE, "dim": 8, "depth": 1, "num_classes": 3}
    model = refimpl.create_model("segmenter_deit_micro", **sizes)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(5, *size)).astype(np.uint8)
    labels = rng.integers(3, size=(5, *size)).astype(np.uint8)
    share = ignored * np.arange(1, 6)[:, None, None] / 5
    labels[rng.random(labels.shape) < share] = 255
    return model, model.init(rng, np.float64), images, labels


def step(model, params, images, labels, shards: int, smoothing: float = 0.1):
    def prepare(pixels):
        return PREPARE(pixels).astype(np.float64)

    objective = batches.Objective(prepare, smoothing=smoothing)
    with ThreadPoolExecutor(2) as pool:
        return batches.batch_gradients(
            model, params, images, labels, objective=objective, shards=shards, pool=pool
        )


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_parts_of_a_batch_weigh_by_their_labelled_pixels(shards):
    model, params, images, labels = lesson(ignored=0.9)
    result = step(model, params, images, labels, shards)
    logits, cache = model.forward(params, PREPARE(images).astype(np.float64))
    loss, loss_cache = ops.pixel_cross_entropy.forward(logits, labels, 0.1)
    (dlogits,) = ops.pixel_cross_entropy.backward(1.0, loss_cache)
    expected = refimpl.flatten(model.backward(dlogits, cache)[1])
    assert result.loss == pytest.approx(loss, rel=1e-13)
    assert result.answers == np.count_nonzero(labels != 255) < labels.size
    assert result.correct == np.count_nonzero(logits.argmax(axis=1) == labels)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        worst = tolerances.disagreement(result.gradients[name], gradient, 1e-6 * largest)
        assert worst <= tolerances.NETWORK_GRADIENTS, name


def test_a_batch_without_any_label_teaches_nothing():
    model, params, images, labels = lesson()
    result = step(model, params, images, np.full_like(labels, 255), shards=2)
    assert (result.loss, result.correct, result.answers) == (0, 0, 0)
    assert all((gradient == 0).all() for gradient in result.gradients.values())


def test_maps_of_another_size_are_read_at_the_models():
    model, params, images, labels = lesson(size=(16, 24))
    nearest = labels[:, 1::2, 1::2]
    expected = step(model, params, images, nearest, 2)
    assert step(model, params, images, labels, 2).loss == expected.loss


def scored(model, params, images, labels) -> batches.Score:
    objective = batches.Objective(lambda pixels: PREPARE(pixels).astype(np.float64))
    with ThreadPoolExecutor(2) as pool:
        return batches.score(model, params, images, labels, objective, 2, pool)


def test_the_score_is_that_of_labelled_pixels():
    """By sets of pixels, a class at a time; class 2 is in no label and has no part in the mean."""
    model, params, images, labels = lesson(ignored=0.7)
    labels[labels == 2] = 255
    found = scored(model, params, images, labels)
    predicted = model.predict(params, PREPARE(images).astype(np.float64)).argmax(axis=1)
    given = labels != 255
    assert found.accuracy == (predicted == labels)[given].mean()
    iou = []
    for c in (0, 1):
        of_label, of_answer = given & (labels == c), given & (predicted == c)
        iou.append(np.count_nonzero(of_label & of_answer) / np.count_nonzero(of_label | of_answer))
    assert found.mean_iou == pytest.approx(np.mean(iou), rel=1e-15)


def test_no_label_is_a_score_of_nothing():
    model, params, images, labels = lesson()
    assert scored(model, params, images, np.full_like(labels, 255)) == (0, 0)


def test_the_loss_of_maps_is_that_of_their_pixels():
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((2, 3, 4, 5)), rng.integers(3, size=(2, 4, 5))
    loss, cache = losses.forward(logits, labels, 0.2)
    expected, expected_cache = ops.pixel_cross_entropy.forward(logits, labels, 0.2)
    assert loss == expected
    np.testing.assert_array_equal(
        losses.backward(2.0, cache)[0], ops.pixel_cross_entropy.backward(2.0, expected_cache)[0]
    )
