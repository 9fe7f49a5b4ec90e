"""One batch: its gradients, or its right answers, computed in parts that run side by side.

NumPy lets go of the interpreter lock, so threads do. The parts' gradients are added in the order
of the parts, never in the order they finish: the sum is the same whatever the timing.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from refimpl import metrics, ops
from refimpl.conventions import IGNORED
from refimpl.data.image_folder import Array, in_batches, map_ahead, slices
from refimpl.data.segmentation import resize_labels
from refimpl.machine import cpus
from refimpl.models import VisionTransformer
from refimpl.models.nodes import Network
from refimpl.models.params import flatten
from refimpl.models.summary import value_bytes
from refimpl.training import losses

FLOAT = 4  # bytes of a number
PART = 2**30  # bytes that the backward pass may keep of a part of a batch

Prepare = Callable[[np.ndarray], np.ndarray]  # uint8 images -> float (n, channels, H, W)


class Objective(NamedTuple):
    """How images become input, what computes, and what the answers are held against."""

    prepare: Prepare
    backend: Any = ops
    smoothing: float = 0.0
    teacher: Callable[[np.ndarray], np.ndarray] | None = None  # uint8 images -> probabilities
    weight: float = 0.0  # of the teacher


class Score(NamedTuple):
    """How many answers are right; fractions from 0 to 1."""

    accuracy: float  # of images, or of labelled pixels
    mean_iou: float | None  # of a segmenter, over the classes that the labels have [SPEC 10]


class BatchResult(NamedTuple):
    """Loss and gradients of one batch or shard."""

    loss: float  # its share of the batch's mean loss
    correct: int  # right answers
    answers: int  # images, or labelled pixels
    gradients: dict[str, np.ndarray]  # flat


def parts(network: Network, count: int, shards: int) -> int:
    """Count the parts in which a batch of so many images is computed: `shards`, as a rule.

    More where the backward pass of one would keep more than PART bytes. That is a matter of the
    network and never of the machine, so the sums have the same order everywhere.
    """
    return min(count, max(shards, -(-count * value_bytes(network, FLOAT) // PART)))


def batch_gradients(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    objective: Objective,
    shards: int,
    pool: ThreadPoolExecutor,
) -> BatchResult:
    """Mean loss of a batch and its gradients, computed in `shards` parts or more side by side.

    images uint8 (B, H, W[, 3]), labels (B,), or (B, H, W) for a segmenter. Each part's loss is
    weighted by the labels it has, so the sum is the batch's; the parts are added in order, in the
    dtype of the parameters.
    """
    labels = _fitting(labels, model)
    answers = _answers(labels)

    def computed(i: np.ndarray) -> BatchResult:
        return _shard(model, params, images[i], labels[i], objective, answers)

    count = parts(model.network, len(images), shards)
    chosen = np.array_split(np.arange(len(images)), count)
    results = map_ahead(pool, computed, chosen, ahead=max(shards, 2 * cpus()))
    loss, correct, _, total = next(results)
    for more_loss, more_correct, _, more in results:
        loss += more_loss
        correct += more_correct
        for name, value in total.items():
            value += more[name]
    return BatchResult(loss, correct, answers, total)


def score(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: Array,
    labels: Array,
    objective: Objective,
    size: int,
    pool: ThreadPoolExecutor,
) -> Score:
    """Of the answers for images uint8 (n, H, W[, 3]), `size` at a time.

    A segmenter's are held against the labels at its own size. 0 where no pixel is labelled.
    """
    maps = model.config.task == "segmentation"

    @np.errstate(all="ignore")  # as in _shard
    def count(batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Right and all answers (2,), or the confusion matrix."""
        prepared = objective.prepare(batch[0])
        logits = model.predict(params, prepared, backend=objective.backend)
        expected = _fitting(batch[1], model)
        if not maps:
            return np.array([_correct(logits, expected), len(expected)])
        return metrics.confusion_matrix(expected, logits.argmax(axis=1), model.config.num_classes)

    parts = slices(len(images), size)
    batches = zip(in_batches(images, parts), in_batches(labels, parts), strict=True)
    counts = sum(map_ahead(pool, count, batches, ahead=2 * cpus()))
    if not maps:
        return Score(float(counts[0] / counts[1]), None)
    if not counts.any():
        return Score(0.0, 0.0)
    return Score(metrics.pixel_accuracy(counts), metrics.mean_iou(counts))


@np.errstate(all="ignore")  # a run that diverges is told once, by name; see loop.py
def _shard(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    objective: Objective,
    answers: int,
) -> BatchResult:
    """Forward and backward of one part of a batch that has so many labels."""
    prepare, backend, smoothing, teacher, weight = objective
    logits, cache = model.forward(params, prepare(images), backend=backend)  # (part, classes)
    probabilities = None if teacher is None else teacher(images).astype(logits.dtype, copy=False)
    loss, loss_cache = losses.forward(logits, labels, smoothing, probabilities, weight)
    share = _answers(labels) / max(answers, 1)  # of the batch's mean
    (dlogits,) = losses.backward(np.asarray(share, dtype=logits.dtype), loss_cache)
    _, gradients = model.backward(dlogits, cache)
    result = float(loss) * share, _correct(logits, labels), _answers(labels)
    return BatchResult(*result, _own(flatten(gradients)))


def _fitting(labels: np.ndarray, model: VisionTransformer) -> np.ndarray:
    """Label maps at the size of the model's logits; labels of images (B,) as they are."""
    if labels.ndim == 1 or labels.shape[1:] == model.config.image_size:
        return labels
    return np.stack([resize_labels(one, model.config.image_size) for one in labels])


def _answers(labels: np.ndarray) -> int:
    """Images, or labelled pixels."""
    return len(labels) if labels.ndim == 1 else int(np.count_nonzero(labels != IGNORED))


def _correct(logits: np.ndarray, labels: np.ndarray) -> int:
    """Classes are the second axis; no class is called IGNORED."""
    return int(np.count_nonzero(logits.argmax(axis=1) == labels))


def _own(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each an array of its own, to add to: an op may return one as the gradient of two."""
    seen: set[int] = set()
    for name, value in gradients.items():
        if id(value) in seen or not value.flags.owndata:
            gradients[name] = value.copy()
        seen.add(id(value))
    return gradients
