"""Boolean probabilities times binary values [SPEC 2, 6.1, R1b].

    context_i = alpha' * sum_j bit_ij v_j                 context="sum"
              = alpha' * (sum_j bit_ij v_j - k_i v_i)     context="differences", k_i = sum_j bit_ij

The sum is a whole number, exact; alpha' comes last, with one rounding. Popcounts give the same
number: 2 popcount(a & v) - k, and - k v_i more for the differences, which are those of real
attention, v_i + sum_j w_ij (v_j - v_i), without its first term. In stage "none" bits and alpha' are
the probabilities themselves, and the gradient of alpha is 0.

>>> prob, value = np.array([[0.1, 0.9], [0.9, 0.9]]), np.array([[1.0, -1.0]])   # d = 1
>>> forward(prob, value, np.array(0.5))[0].T
array([[-0.5,  0. ]])
>>> forward(prob, value, np.array(0.5), context="differences")[0].T   # -1 - 1, and 1 + 1 + 0
array([[-1.,  1.]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_choice
from refimpl.ops import boolean, matmul
from refimpl.ops.binary_linear import STAGES

CONTEXTS = ("sum", "differences")


class Cache(NamedTuple):
    boolean: boolean.Cache | None  # None in stage "none"
    matmul: matmul.Cache  # a: the binarized probabilities (B, heads, N, N); b: value
    alpha: np.ndarray
    context: str


def forward(
    prob: np.ndarray,
    value: np.ndarray,
    alpha: np.ndarray,
    *,
    binarize: str = "full",
    context: str = "sum",
) -> tuple[np.ndarray, Cache]:
    """prob (B, heads, N, N), value (B, heads, d, N), alpha () or (heads, 1, 1)
    -> context (B, heads, N, d)."""
    float_dtype("boolean_attention", prob=prob, value=value, alpha=alpha)
    require_choice("boolean_attention", "binarize", binarize, STAGES)
    require_choice("boolean_attention", "context", context, CONTEXTS)
    if binarize == "none":
        return product(prob, value, context), Cache(None, matmul.Cache(prob, value), alpha, context)
    weights, boolean_cache = boolean.forward(prob, alpha)  # (B, heads, N, N)
    y = product(boolean_cache.bit.astype(prob.dtype), value, context)  # whole numbers
    y *= boolean.step_of(alpha)
    return y, Cache(boolean_cache, matmul.Cache(weights, value), alpha, context)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, heads, N, d) -> (dprob (B, heads, N, N), dvalue (B, heads, d, N), dalpha)."""
    weights, value = cache.matmul
    # forward was context = y value^T with y = Boolean(prob; alpha)
    dweights, dvalue = matmul.backward(dy, cache.matmul)
    if cache.context == "differences":
        # forward was … - k value_i, k = sum_j y_ij: every y_ij also hears -value_i
        dweights -= (dy * value.swapaxes(-1, -2)).sum(axis=-1, keepdims=True)
        dvalue -= (weights.sum(axis=-1, keepdims=True) * dy).swapaxes(-1, -2)
    if cache.boolean is None:
        return dweights, dvalue, np.zeros_like(cache.alpha)
    dprob, dalpha = boolean.backward(dweights, cache.boolean)
    return dprob, dvalue, dalpha


def product(weights: np.ndarray, value: np.ndarray, context: str = "sum") -> np.ndarray:
    """sum_j w_ij v_j, or sum_j w_ij (v_j - v_i): weights (..., N, N), value (..., d, N)."""
    total, _ = matmul.forward(weights, value)  # (..., N, d)
    if context == "sum":
        return total
    if weights.shape[-1] != weights.shape[-2]:
        raise ShapeError(
            f"boolean_attention: prob has shape {weights.shape}; expected a query for every key"
        )
    return total - weights.sum(axis=-1, keepdims=True) * value.swapaxes(-1, -2)
