"""Twin of `ops.boolean_attention`: one pass over the probabilities in front of the product.

The cache holds the ratio that the boolean compared, and backward makes the rest of it again. The
product is BLAS's: between so few tokens, packing the bits takes longer than it saves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit


class Cache(NamedTuple):
    ratio: np.ndarray  # (B, heads, N, N) q
    value: np.ndarray  # (B, heads, d, N)
    alpha: np.ndarray  # () or (heads, 1, 1)


def forward(
    prob: np.ndarray,
    value: np.ndarray,
    alpha: np.ndarray,
    *,
    binarize: str = "full",
    context: str = "sum",
) -> tuple[np.ndarray, Cache | ops.boolean_attention.Cache]:
    """prob (B, heads, N, N), value (B, heads, d, N), alpha () or (heads, 1, 1)
    -> context (B, heads, N, d)."""
    options = {"binarize": binarize, "context": context}
    fits = _fits(prob, value, alpha) and context == "sum"
    if not fits or binarize not in ("full", "activations"):
        return ops.boolean_attention.forward(prob, value, alpha, **options)
    ratio, bit = np.empty(prob.shape, prob.dtype), np.empty(prob.shape, prob.dtype)
    step = ops.boolean.step_of(alpha)
    if not _compare(np.ascontiguousarray(prob), _by_head(step, prob), ratio, bit):
        return ops.boolean_attention.forward(prob, value, alpha, **options)
    y, _ = ops.matmul.forward(bit, value)  # (B, heads, N, d) whole numbers
    y *= step
    return y, Cache(ratio, value, alpha)


def _fits(prob: np.ndarray, value: np.ndarray, alpha: np.ndarray) -> bool:
    if prob.ndim != 4 or value.ndim != 4:
        return False
    batch, heads, _, keys = prob.shape
    shape = (heads, 1, 1) if np.ndim(alpha) else ()
    others = (value, (batch, heads, value.shape[2], keys)), (alpha, shape)
    return value.size > 0 and rows.fits(prob, *others) and bool(np.isfinite(alpha).all())


def _by_head(step: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """The step alpha' of each head (heads,)."""
    return np.broadcast_to(step.reshape(-1), prob.shape[1]).copy()


@jit
def _compare(prob, step, ratio, bit):
    """ratio = prob / alpha', bit = ratio > 1/2; False where one is NaN or infinity."""
    broken, zero, one = 0, prob.dtype.type(0), prob.dtype.type(1)
    for b in range(prob.shape[0]):
        for h in range(prob.shape[1]):
            for n in range(prob.shape[2]):
                for k in range(prob.shape[3]):
                    q = prob[b, h, n, k] / step[h]
                    ratio[b, h, n, k] = q
                    bit[b, h, n, k] = one if q > 0.5 else zero
                    broken += not np.isfinite(q)
    return broken == 0


def backward(
    dy: np.ndarray, cache: Cache | ops.boolean_attention.Cache
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, heads, N, d) -> (dprob (B, heads, N, N), dvalue (B, heads, d, N), dalpha)."""
    if not isinstance(cache, Cache):
        return ops.boolean_attention.backward(dy, cache)
    ratio, value, alpha = cache
    # forward was context = y value^T with y = Boolean(prob; alpha)
    dprob, y, dstep = dy @ value, np.empty_like(ratio), np.empty_like(ratio)
    step = _by_head(ops.boolean.step_of(alpha), ratio)
    _backward(ratio, step, dprob, y, dstep)
    free = alpha >= alpha.dtype.type(ops.boolean.ALPHA_MIN)
    axes = (0, 2, 3) if alpha.ndim else (0, 1, 2, 3)
    dalpha = dstep.sum(axis=axes).reshape(alpha.shape) * free
    return dprob, dy.swapaxes(-1, -2) @ y, np.asarray(dalpha)


@jit
def _backward(ratio, step, dprob, y, dstep):
    """dprob is the gradient of y, and becomes that of prob."""
    zero, one = ratio.dtype.type(0), ratio.dtype.type(1)
    for b in range(ratio.shape[0]):
        for h in range(ratio.shape[1]):
            for n in range(ratio.shape[2]):
                for k in range(ratio.shape[3]):
                    y[b, h, n, k] = step[h] if ratio[b, h, n, k] > 0.5 else zero
                for k in range(ratio.shape[3]):
                    q, d = ratio[b, h, n, k], dprob[b, h, n, k]
                    inside = d * ((one if q > 0.5 else zero) - q) if q >= 0 else zero
                    dstep[b, h, n, k] = d if q > 1 else inside
                for k in range(ratio.shape[3]):
                    q = ratio[b, h, n, k]
                    dprob[b, h, n, k] = dprob[b, h, n, k] if q >= 0 and q <= 1 else zero
