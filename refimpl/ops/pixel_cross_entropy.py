"""Cross-entropy of every labelled pixel [SPEC 10].

    loss = mean of cross_entropy over the pixels of the batch whose label is not `ignored`

The mean is over the labelled pixels of the whole batch: an image with few of them has a small part
in it. Where there is none, loss and gradient are 0. Smoothing is that of `cross_entropy`.

>>> logits = np.log(np.array([[1.0, 1.0], [3.0, 7.0]])).reshape(1, 2, 1, 2)
>>> loss, _ = forward(logits, np.array([[[1, 255]]]))
>>> round(float(loss), 6)                                # -log 3/4, of the first pixel alone
0.287682
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import IGNORED, float_dtype, require_integers, require_shape
from refimpl.ops import cross_entropy


class Cache(NamedTuple):
    labelled: np.ndarray  # (B, H, W) bool
    pixels: cross_entropy.Cache | None  # of the labelled ones; None where there is none
    dtype: np.dtype
    classes: int  # K


def forward(
    logits: np.ndarray, target: np.ndarray, smoothing: float = 0.0, ignored: int = IGNORED
) -> tuple[np.ndarray, Cache]:
    """logits (B, K, H, W), target (B, H, W) integers 0 to K - 1 or `ignored` -> loss ()."""
    dtype = float_dtype("pixel_cross_entropy", logits=logits)
    require_shape("pixel_cross_entropy", "logits", logits, (None, None, None, None))
    batch, classes, *size = logits.shape
    require_shape("pixel_cross_entropy", "target", target, (batch, *size))
    require_integers("pixel_cross_entropy", "target", target)
    labelled = np.asarray(target != ignored)
    if not labelled.any():
        return dtype.type(0), Cache(labelled, None, dtype, classes)
    rows = logits.transpose(0, 2, 3, 1)[labelled]  # (pixels, K)
    loss, cache = cross_entropy.forward(rows, target[labelled], smoothing)
    return loss, Cache(labelled, cache, dtype, classes)


def backward(dloss: float, cache: Cache) -> tuple[np.ndarray]:
    """dloss () -> (dlogits (B, K, H, W),), 0 at ignored pixels."""
    labelled, pixels, dtype, classes = cache
    dlogits = np.zeros((*labelled.shape, classes), dtype)  # (B, H, W, K)
    if pixels is not None:
        (dlogits[labelled],) = cross_entropy.backward(dloss, pixels)
    return (dlogits.transpose(0, 3, 1, 2),)
