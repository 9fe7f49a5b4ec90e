"""Cross-entropy with label smoothing [SPEC 1, 7].

    loss = mean over the batch of -sum_k t_k log softmax(logits)_k,  t = (1 - e) onehot + e / K

>>> loss, _ = forward(np.log(np.array([[1.0, 3.0]])), np.array([1]))
>>> round(float(loss), 6)                                # -log 3/4
0.287682
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import (
    ConfigError,
    DataError,
    float_dtype,
    require_integers,
    require_shape,
)
from refimpl.ops import soft_cross_entropy
from refimpl.ops.soft_cross_entropy import Cache


def forward(
    logits: np.ndarray, target: np.ndarray, smoothing: float = 0.0
) -> tuple[np.ndarray, Cache]:
    """logits (B, K), target (B,) integers 0 to K - 1, smoothing e -> loss ()."""
    dtype = float_dtype("cross_entropy", logits=logits)
    require_shape("cross_entropy", "logits", logits, (None, None))
    require_shape("cross_entropy", "target", target, logits.shape[:1])
    require_integers("cross_entropy", "target", target)
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"cross_entropy: smoothing is {smoothing}; expected 0 to 1")
    classes = logits.shape[1]
    wrong = (target < 0) | (target >= classes)
    if wrong.any():
        raise DataError(f"cross_entropy: label {target[wrong][0]}; expected 0 to {classes - 1}")
    smoothed = np.full(logits.shape, smoothing / classes, dtype)
    smoothed[np.arange(len(target)), target] += 1 - smoothing
    return soft_cross_entropy.forward(logits, smoothed)


def backward(dloss: float, cache: Cache) -> tuple[np.ndarray]:
    """dloss () -> (dlogits (B, K),)."""
    return soft_cross_entropy.backward(dloss, cache)
