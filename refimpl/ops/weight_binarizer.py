"""Binary weights with one real scale an output channel [SPEC 2].

    s_o = mean_i |W_oi|           a constant for the gradient
    Wc  = W - mean_i W            centring: as many +1 as -1, roughly, in every row
    W_b = s_o * sign(Wc)

The gradient is the identity inside the clip |Wc| <= 1 and goes back through the centring; it has
no factor s_o. Means are pairwise sums over the row in the dtype of W.

>>> forward(np.array([[4.0, 1.0, -2.0]]))[0]        # mean 1: the middle weight is a tie
array([[ 2.33333333,  2.33333333, -2.33333333]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_finite, require_shape
from refimpl.ops import sign


class Binarized(NamedTuple):
    centred: np.ndarray  # (O, I) Wc, the value before the threshold
    signs: np.ndarray  # (O, I) sign(Wc)
    scale: np.ndarray  # (O,)   s_o


class Cache(NamedTuple):
    centred: np.ndarray  # (O, I) the clip is a function of it


def binarize(weight: np.ndarray) -> Binarized:
    """The three parts of W_b that a packed file stores; weight (O, I)."""
    float_dtype("weight_binarizer", weight=weight)
    require_shape("weight_binarizer", "weight", weight, (None, None))
    require_finite("weight_binarizer", "weight", weight)  # the mean would spread it over the row
    centred = weight - weight.mean(axis=1, keepdims=True)  # (O, I)
    return Binarized(centred, sign.forward(centred)[0], np.abs(weight).mean(axis=1))


def forward(weight: np.ndarray) -> tuple[np.ndarray, Cache]:
    """weight (O, I) -> W_b (O, I). NonFiniteError on NaN or infinity."""
    centred, signs, scale = binarize(weight)
    return scale[:, None] * signs, Cache(centred)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy = dW_b (O, I) -> (dweight (O, I),)."""
    # forward was W_b = s sign(Wc): the identity inside the clip, closed outside
    dcentred = dy * (np.abs(cache.centred) <= 1)
    # forward was Wc = W - mean_i W
    return (dcentred - dcentred.mean(axis=1, keepdims=True),)
