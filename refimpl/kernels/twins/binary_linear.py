"""Twin of `ops.binary_linear`: the product of signs by counting bits, the surrogate in one pass.

The cache holds what the signs are made of, not the signs: forward packs them into bits, and
backward writes them out as floats when it needs them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import NonFiniteError
from refimpl.kernels import bits, rows
from refimpl.kernels.compile import jit
from refimpl.kernels.twins.sign import surrogate


class Cache(NamedTuple):
    x: np.ndarray  # (..., I) before its sign
    ste: str
    centred: np.ndarray  # (O, I) Wc
    used: np.ndarray  # (O, I) W_b
    has_bias: bool


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    binarize: str = "full",
    ste: str = "polynomial",
) -> tuple[np.ndarray, Cache | ops.binary_linear.Cache]:
    """x (..., I) before its sign, latent weight (O, I), bias (O,) or None -> y (..., O)."""
    outputs, given = weight.shape[:1], () if bias is None else ((bias, weight.shape[:1]),)
    if (
        binarize != "full"
        or ste not in ops.sign.STES
        or not rows.fits(x, (weight, (*outputs, *x.shape[-1:])), *given)
    ):
        return ops.binary_linear.forward(x, weight, bias, binarize=binarize, ste=ste)
    packed = _pack(x)
    centred, signs, scale = ops.weight_binarizer.binarize(weight)
    product = bits.binary_product(packed, bits.pack(centred))  # (K, O)
    y = np.empty((*x.shape[:-1], *outputs), x.dtype)
    _scale(np.ascontiguousarray(product), scale, rows.matrix(y))
    if bias is not None:
        y += bias
    return y, Cache(x, ste, centred, scale[:, None] * signs, bias is not None)


def _pack(x: np.ndarray) -> bits.Packed:
    try:
        return bits.pack(rows.matrix(x))
    except NonFiniteError:
        ops.sign.forward(x)  # names the first NaN or infinity by its index in x
        raise


@jit
def _scale(product, scale, y):
    for r in range(y.shape[0]):
        for o in range(y.shape[1]):
            y[r, o] = product[r, o] * scale[o]


def backward(
    dy: np.ndarray, cache: Cache | ops.binary_linear.Cache
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dy (..., O) -> (dx (..., I), dweight (O, I), dbias (O,) or None)."""
    if not isinstance(cache, Cache):
        return ops.binary_linear.backward(dy, cache)
    x, ste, centred, used, has_bias = cache
    # forward was y = signs W_b^T + bias
    dsigns, signs, dx = dy @ used, np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    _backward(*map(rows.matrix, (x, dsigns, signs, dx)), ste == "clip")
    gradients = dy.reshape(-1, dy.shape[-1])
    dbias = gradients.sum(axis=0) if has_bias else None
    dused = gradients.T @ rows.matrix(signs)
    (dweight,) = ops.weight_binarizer.backward(dused, ops.weight_binarizer.Cache(centred))
    return dx, dweight, dbias


@jit
def _backward(x, dsigns, signs, dx, clip):
    one = x.dtype.type(1)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            signs[r, c] = one if x[r, c] >= 0 else -one
        for c in range(x.shape[1]):
            dx[r, c] = dsigns[r, c] * surrogate(x[r, c], clip)
