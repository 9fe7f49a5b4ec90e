"""How well classes and label maps are predicted [SPEC 10]: counts, and ratios of their sums.

    M[t, p]        pixels labelled t and predicted p, over all images
    IoU_c          M[c, c] / (sum_p M[c, p] + sum_t M[t, c] - M[c, c])
    mIoU           mean of IoU_c over the classes that the ground truth has
    pixel accuracy sum_c M[c, c] / sum M

>>> counts = confusion_matrix(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 2]]), classes=3)
>>> counts.tolist()                    # the last pixel is ignored
[[1, 1, 0], [0, 1, 0], [0, 0, 0]]
>>> mean_iou(counts), pixel_accuracy(counts)      # two classes of IoU 1/2; the third is absent
(0.5, 0.6666666666666666)
"""

import csv
import io
from collections.abc import Sequence

import numpy as np

from refimpl.conventions import (
    IGNORED,
    DataError,
    ShapeError,
    require_integers,
    require_shape,
)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """labels, predicted: integers of one shape, 0 to classes - 1 -> int64 (classes, classes).

    Rows are the ground truth, columns the prediction. Pixels labelled 255 are left out. Matrices of
    several images may be added. ShapeError for two shapes, DataError for a number out of range,
    DtypeError for what are no integers.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    for name, values in (("labels", labels), ("predictions", predicted)):
        require_integers("metrics", name, values)
    if labels.shape != predicted.shape:
        raise ShapeError(f"metrics: labels are {labels.shape}, predictions {predicted.shape}")
    counted = labels != IGNORED
    true, found = labels[counted].astype(np.int64), predicted[counted].astype(np.int64)
    _require_classes("label", true, classes)
    _require_classes("prediction", found, classes)
    counts = np.bincount(true * classes + found, minlength=classes * classes)
    return counts.reshape(classes, classes)


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find the place of the true class: (B, classes), (B,) -> int (B,), 0 the most probable.

    Of equal logits the first comes first, as in argmax. DataError for a label that is no class,
    DtypeError for labels that are no integers, ShapeError where they are not as many.

    >>> ranks(np.array([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]]), np.array([2, 0])).tolist()
    [1, 0]
    """
    require_integers("metrics", "labels", labels)
    require_shape("metrics", "labels", labels, (len(logits),))
    _require_classes("label", labels, logits.shape[-1])
    order = np.argsort(-logits, axis=-1, kind="stable")  # (B, classes)
    return np.argmax(order == labels[:, None], axis=-1)


def hits(ranks: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count right answers: ranks (B,), labels (B,) -> int64 (classes, 3).

    Columns: images of a class, those whose class is the first answer, is among the first five.
    Counts of several batches may be added. DataError for a label that is no class.

    >>> hits(np.array([0, 3, 7]), np.array([0, 1, 1]), classes=2).tolist()
    [[1, 1, 1], [2, 0, 1]]
    """
    _require_classes("label", labels, classes)
    kinds = (labels, labels[ranks < 1], labels[ranks < 5])
    return np.stack([np.bincount(some, minlength=classes) for some in kinds], axis=1)


def iou(counts: np.ndarray) -> np.ndarray:
    """Confusion matrix (classes, classes) -> (classes,), NaN for classes absent from the labels.

    >>> iou(np.array([[3, 1, 0], [0, 1, 0], [0, 0, 0]])).tolist()
    [0.75, 0.5, nan]
    """
    right, labelled, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = labelled + predicted - right
    return np.where(labelled > 0, right / np.maximum(union, 1), np.nan)


def mean_iou(counts: np.ndarray) -> float:
    """Mean over the classes that the labels have; DataError where no pixel is labelled.

    >>> mean_iou(np.array([[3, 1, 0], [0, 1, 0], [0, 0, 0]]))
    0.625
    """
    _require_labels(counts)
    return float(np.nanmean(iou(counts)))


def pixel_accuracy(counts: np.ndarray) -> float:
    """Share of the labelled pixels that are right; DataError where there is none.

    >>> pixel_accuracy(np.array([[3, 1], [0, 1]]))
    0.8
    """
    _require_labels(counts)
    return float(np.trace(counts) / counts.sum())


def to_csv(counts: np.ndarray, class_names: Sequence[str]) -> str:
    """Write the matrix as text: a row a class of the labels, a column a class of the predictions.

    >>> to_csv(np.array([[3, 1], [0, 2]]), ["sky", "road"]).splitlines()[1:]
    ['sky,3,1', 'road,0,2']
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label \\ predicted", *class_names])
    writer.writerows([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
    return text.getvalue()


def _require_classes(name: str, values: np.ndarray, classes: int) -> None:
    wrong = values[(values < 0) | (values >= classes)]
    if len(wrong):
        raise DataError(f"metrics: {name} {wrong[0]}, expected 0 to {classes - 1}")


def _require_labels(counts: np.ndarray) -> None:
    if not counts.any():
        raise DataError("metrics: no labelled pixel, expected at least one")
