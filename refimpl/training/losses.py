"""The loss of a run [SPEC 7]: labels, or labels and a teacher, w being the teacher's weight.

    loss = (1 - w) * cross_entropy(logits, labels, smoothing) + w * soft_cross_entropy(logits, p)

p are the teacher's probabilities at temperature 1. Their weighted sum is a mean over the batch
like its two parts. Of label maps (B, H, W) it is `pixel_cross_entropy` [SPEC 10], and there is no
teacher.

>>> logits, teacher = np.log(np.array([[1.0, 3.0]])), np.array([[0.5, 0.5]])
>>> round(float(forward(logits, np.array([1]), 0.0, teacher, 0.25)[0]), 6)  # 3 * 0.2877 + 0.8370
0.425009
"""

from typing import NamedTuple

import numpy as np

from refimpl.ops import cross_entropy, pixel_cross_entropy, soft_cross_entropy


class Cache(NamedTuple):
    hard: cross_entropy.Cache | pixel_cross_entropy.Cache
    soft: soft_cross_entropy.Cache | None  # None without a teacher
    weight: float  # w


def forward(
    logits: np.ndarray,
    labels: np.ndarray,
    smoothing: float,
    probabilities: np.ndarray | None = None,
    weight: float = 0.0,
) -> tuple[np.ndarray, Cache]:
    """logits (B, K), labels (B,), the teacher's probabilities (B, K) or None -> loss ().

    Or logits (B, K, H, W) and labels (B, H, W).
    """
    if labels.ndim == 3:
        hard, hard_cache = pixel_cross_entropy.forward(logits, labels, smoothing)
        return hard, Cache(hard_cache, None, 0.0)
    hard, hard_cache = cross_entropy.forward(logits, labels, smoothing)
    if probabilities is None:
        return hard, Cache(hard_cache, None, 0.0)
    soft, soft_cache = soft_cross_entropy.forward(logits, probabilities)
    return (1 - weight) * hard + weight * soft, Cache(hard_cache, soft_cache, weight)


def backward(dloss: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dloss () -> (dlogits like logits,); the teacher learns nothing."""
    hard, soft, weight = cache
    if isinstance(hard, pixel_cross_entropy.Cache):
        return pixel_cross_entropy.backward(dloss, hard)
    if soft is None:
        return cross_entropy.backward(dloss, hard)
    (dhard,) = cross_entropy.backward((1 - weight) * dloss, hard)
    (dsoft,) = soft_cross_entropy.backward(weight * dloss, soft)
    return (dhard + dsoft,)
