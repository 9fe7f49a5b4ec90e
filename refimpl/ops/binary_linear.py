"""Linear map of binary activations with binary weights [SPEC 2, 5].

    y = sign(x) W_b^T + bias = s_o * (sign(x) sign(Wc)^T) + bias

The product of signs is a whole number between -K and K, exact in float32 up to K = 2^24, so y has
one rounding: the scale's. A popcount gives the same number: K - 2 popcount(a ^ w).
Stages: binarize="activations" is sign(x) W^T with W itself; "none" is x W^T.

>>> weight = np.array([[4.0, 1.0, -2.0]])                 # signs + + -, scale 7/3
>>> forward(np.array([[0.3, -0.3, 0.0]]), weight)[0]      # signs + - +, product -1
array([[-2.33333333]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_choice, require_shape
from refimpl.ops import linear, sign, weight_binarizer

STAGES = ("full", "activations", "none")


class Cache(NamedTuple):
    sign: sign.Cache | None  # None in stage "none"
    weight: weight_binarizer.Cache | None  # None unless "full"
    linear: linear.Cache  # its x are the signs, its weight is W_b


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    binarize: str = "full",
    ste: str = "polynomial",
) -> tuple[np.ndarray, Cache]:
    """x (..., I) before its sign, latent weight (O, I), bias (O,) or None -> y (..., O)."""
    float_dtype("binary_linear", x=x, weight=weight, bias=bias)
    require_choice("binary_linear", "binarize", binarize, STAGES)
    require_shape("binary_linear", "weight", weight, (None, *x.shape[-1:]))
    if binarize == "none":
        y, linear_cache = linear.forward(x, weight, bias)
        return y, Cache(None, None, linear_cache)
    signs, sign_cache = sign.forward(x, ste)  # (..., I)
    if binarize == "activations":
        y, linear_cache = linear.forward(signs, weight, bias)
        return y, Cache(sign_cache, None, linear_cache)
    centred, weight_signs, scale = weight_binarizer.binarize(weight)
    y, _ = linear.forward(signs, weight_signs)  # (..., O) whole numbers
    y *= scale
    if bias is not None:
        require_shape("binary_linear", "bias", bias, scale.shape)
        y += bias
    linear_cache = linear.Cache(signs, scale[:, None] * weight_signs, bias is not None)
    return y, Cache(sign_cache, weight_binarizer.Cache(centred), linear_cache)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dy (..., O) -> (dx (..., I), dweight (O, I), dbias (O,) or None)."""
    # forward was y = signs W_b^T + bias
    dx, dweight, dbias = linear.backward(dy, cache.linear)
    if cache.weight is not None:
        (dweight,) = weight_binarizer.backward(dweight, cache.weight)
    if cache.sign is not None:
        (dx,) = sign.backward(dx, cache.sign)
    return dx, dweight, dbias
