"""Confusion matrices and what is made of them [SPEC 10]: scikit-learn, and literals by hand."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import metrics
from refimpl.conventions import DataError, DtypeError, ShapeError
from tests import oracles, strategies


def draw(seed: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, some ignored, some classes absent; predictions that are right now and then."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(rng.integers(1, classes, endpoint=True), size=shape)
    predicted = np.where(rng.random(shape) < 0.4, labels, rng.integers(classes, size=shape))
    labels[rng.random(shape) < 0.2] = 255
    labels.flat[0] = 0
    return labels.astype(np.uint8), predicted.astype(np.uint8)


@given(strategies.seeds(), strategies.sizes(2), st.integers(2, 11))
def test_against_scikit_learn(seed, shape, classes):
    theirs = oracles.require("sklearn", "sklearn.metrics")
    labels, predicted = draw(seed, shape, classes)
    counts = metrics.confusion_matrix(labels, predicted, classes)
    given = labels != 255
    expected = theirs.confusion_matrix(labels[given], predicted[given], labels=range(classes))
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.int64
    accuracy = theirs.accuracy_score(labels[given], predicted[given])
    assert metrics.pixel_accuracy(counts) == pytest.approx(accuracy, rel=1e-14)
    present = np.unique(labels[given])
    jaccard = theirs.jaccard_score(
        labels[given], predicted[given], labels=present, average=None, zero_division=0
    )
    np.testing.assert_allclose(metrics.iou(counts)[present], jaccard, rtol=1e-14)
    assert np.isnan(np.delete(metrics.iou(counts), present)).all()
    assert metrics.mean_iou(counts) == pytest.approx(jaccard.mean(), rel=1e-14)


@given(strategies.seeds(), st.integers(2, 11))
def test_matrices_of_images_add_up_to_that_of_all(seed, classes):
    labels, predicted = draw(seed, (3, 4, 5), classes)
    parts = (metrics.confusion_matrix(*pair, classes) for pair in zip(labels, predicted))
    whole = metrics.confusion_matrix(labels, predicted, classes)
    np.testing.assert_array_equal(sum(parts), whole)


def test_by_hand_with_a_class_that_is_predicted_and_nowhere_labelled():
    labels = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = np.array([[0, 0, 1, 1], [1, 2, 2, 0]])
    counts = metrics.confusion_matrix(labels, predicted, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # 0: 2 of 2 + 1; 1: 2 of 2 + 1 (from 0) + 1 (to 2); 2 is wrong in one pixel and not in the mean
    np.testing.assert_array_equal(metrics.iou(counts), [2 / 3, 2 / 4, np.nan, np.nan])
    assert metrics.mean_iou(counts) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics.pixel_accuracy(counts) == 4 / 6


def test_as_csv():
    names = ("sky", 'floor, "flooring"')
    rows = list(csv.reader(metrics.to_csv(np.array([[3, 1], [0, 2]]), names).splitlines()))
    assert rows == [["label \\ predicted", *names], ["sky", "3", "1"], [names[1], "0", "2"]]


def test_refusals():
    zeros = np.zeros((2, 3), np.uint8)
    with pytest.raises(ShapeError, match=r"labels are \(2, 3\), predictions \(3, 2\)"):
        metrics.confusion_matrix(zeros, zeros.T, 4)
    with pytest.raises(DataError, match="label 4, expected 0 to 3"):
        metrics.confusion_matrix(zeros + 4, zeros, 4)
    with pytest.raises(DataError, match="prediction 255, expected 0 to 3"):
        metrics.confusion_matrix(zeros, zeros + 255, 4)
    for wrong in (zeros.astype(float), zeros > 0, zeros.tolist()):
        with pytest.raises(DtypeError, match="expected an array of integers"):
            metrics.confusion_matrix(wrong, zeros, 4)
        with pytest.raises(DtypeError, match="expected an array of integers"):
            metrics.confusion_matrix(zeros, wrong, 4)
    for ratio in (metrics.mean_iou, metrics.pixel_accuracy):
        with pytest.raises(DataError, match="no labelled pixel"):
            ratio(metrics.confusion_matrix(zeros + 255, zeros, 4))


@pytest.mark.parametrize("label", [-1, 2, 5])
def test_hits_of_a_label_that_is_no_class(label):
    with pytest.raises(DataError, match=f"label {label}, expected 0 to 1"):
        metrics.hits(np.array([0, 3]), np.array([1, label]), classes=2)
