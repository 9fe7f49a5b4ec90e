"""Cross-entropy against a distribution: distillation, ReActNet's distribution loss [SPEC 7].

    loss = mean over the batch of -sum_k p_k log softmax(logits)_k

>>> loss, _ = forward(np.log(np.array([[1.0, 3.0]])), np.array([[0.5, 0.5]]))
>>> round(float(loss), 6)                                # -(log 1/4 + log 3/4) / 2
0.836988
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_finite, require_shape


class Cache(NamedTuple):
    softmax: np.ndarray  # (B, K)
    probabilities: np.ndarray  # (B, K)


def forward(logits: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, Cache]:
    """logits, probabilities (B, K), rows of probabilities sum to 1 -> loss ()."""
    float_dtype("soft_cross_entropy", logits=logits, probabilities=probabilities)
    require_shape("soft_cross_entropy", "logits", logits, (None, None))
    require_shape("soft_cross_entropy", "probabilities", probabilities, logits.shape)
    if logits.shape[0] == 0:
        raise ShapeError("soft_cross_entropy: an empty batch; expected at least one row")
    require_finite("soft_cross_entropy", "logits", logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_student = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -(probabilities * log_student).sum(axis=1).mean()
    return loss, Cache(np.exp(log_student), probabilities)


def backward(dloss: float, cache: Cache) -> tuple[np.ndarray]:
    """dloss () -> (dlogits (B, K),); the teacher's probabilities are constants."""
    student, probabilities = cache
    share = student.dtype.type(dloss / student.shape[0])  # of one image in the mean
    return ((student - probabilities) * share,)
