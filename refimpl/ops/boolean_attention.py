"""Boolean probabilities times binary values [SPEC 2, 6.1].

    context = Boolean(prob; alpha) value^T = alpha' * (bit value^T)

The product of bits and signs is a whole number, exact; alpha' comes last, with one rounding.
A popcount gives the same number: 2 popcount(a & v) - popcount(a). In stage "none" it is the
real product prob value^T, and the gradient of alpha is 0.

>>> prob, value = np.array([[0.1, 0.9]]), np.array([[1.0, -1.0]])     # one query, two keys, d = 1
>>> forward(prob, value, np.array(0.5))[0]
array([[-0.5]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_choice
from refimpl.ops import boolean, matmul
from refimpl.ops.binary_linear import STAGES


class Cache(NamedTuple):
    boolean: boolean.Cache | None  # None in stage "none"
    matmul: matmul.Cache  # a: the binarized probabilities (B, heads, N, N); b: value
    alpha: np.ndarray


def forward(
    prob: np.ndarray, value: np.ndarray, alpha: np.ndarray, *, binarize: str = "full"
) -> tuple[np.ndarray, Cache]:
    """prob (B, heads, N, N), value (B, heads, d, N), alpha () or (heads, 1, 1)
    -> context (B, heads, N, d)."""
    float_dtype("boolean_attention", prob=prob, value=value, alpha=alpha)
    require_choice("boolean_attention", "binarize", binarize, STAGES)
    if binarize == "none":
        context, matmul_cache = matmul.forward(prob, value)
        return context, Cache(None, matmul_cache, alpha)
    y, boolean_cache = boolean.forward(prob, alpha)  # (B, heads, N, N)
    bit = boolean_cache.bit.astype(prob.dtype)
    context, _ = matmul.forward(bit, value)  # (B, heads, N, d) whole numbers
    context *= boolean.step_of(alpha)
    return context, Cache(boolean_cache, matmul.Cache(y, value), alpha)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, heads, N, d) -> (dprob (B, heads, N, N), dvalue (B, heads, d, N), dalpha)."""
    # forward was context = y value^T with y = Boolean(prob; alpha)
    dprob, dvalue = matmul.backward(dy, cache.matmul)
    if cache.boolean is None:
        return dprob, dvalue, np.zeros_like(cache.alpha)
    dprob, dalpha = boolean.backward(dprob, cache.boolean)
    return dprob, dvalue, dalpha
