"""Twin of `ops.rprelu`: one pass over each token, forward and backward."""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.kernels import rows
from refimpl.kernels.compile import jit
from refimpl.kernels.rows import pairwise_sum

Cache = ops.rprelu.Cache


def forward(
    x: np.ndarray,
    shift_in: np.ndarray,
    slope: np.ndarray,
    shift_out: np.ndarray,
    token_shift_in: np.ndarray | None = None,
    token_shift_out: np.ndarray | None = None,
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C); shift_in, slope, shift_out (C,); token shifts (N,), both or none -> y like x."""
    channel = [(array, x.shape[-1:]) for array in (shift_in, slope, shift_out)]
    given = [array for array in (token_shift_in, token_shift_out) if array is not None]
    token = [(array, x.shape[1:2]) for array in given]
    fits = x.ndim == 3 and len(given) != 1 and rows.fits(x, *channel, *token)
    if not (fits and np.isfinite(slope).all()):  # 0 times infinity is not looked for here
        return ops.rprelu.forward(x, shift_in, slope, shift_out, token_shift_in, token_shift_out)
    # a shift of 0 changes nothing
    before, after = given or (np.zeros(x.shape[1], x.dtype),) * 2
    u, y = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    _forward(np.ascontiguousarray(x), shift_in, slope, shift_out, before, after, u, y)
    return y, Cache(u, slope, bool(given))


@jit
def _forward(x, shift_in, slope, shift_out, before, after, u, y):
    batch, tokens, channels = x.shape
    for b in range(batch):
        for n in range(tokens):
            for c in range(channels):
                u[b, n, c] = x[b, n, c] - shift_in[c] - before[n]
            for c in range(channels):
                v = u[b, n, c]
                y[b, n, c] = (v if v > 0 else slope[c] * v) + shift_out[c] + after[n]


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray | None, ...]:
    """dy (B, N, C) -> (dx, dshift_in, dslope, dshift_out, dtoken_shift_in, dtoken_shift_out)."""
    u, slope, per_token = cache
    if not rows.fits(dy, (u, dy.shape)):
        return ops.rprelu.backward(dy, cache)
    dx = np.empty(dy.shape, dy.dtype)
    dshift_in, dslope, dshift_out = np.zeros((3, dy.shape[2]), dy.dtype)
    dbefore, dafter = np.zeros((2, dy.shape[1]), dy.dtype)
    _backward(
        np.ascontiguousarray(dy), u, slope, dx, dshift_in, dslope, dshift_out, dbefore, dafter
    )
    if not per_token:
        return dx, dshift_in, dslope, dshift_out, None, None
    return dx, dshift_in, dslope, dshift_out, dbefore, dafter


@jit
def _backward(dy, u, slope, dx, dshift_in, dslope, dshift_out, dbefore, dafter):
    batch, tokens, channels = dy.shape
    dys, dxs, zero = dy.reshape(-1), dx.reshape(-1), dy.dtype.type(0)
    for b in range(batch):
        for n in range(tokens):
            for c in range(channels):
                d = dy[b, n, c]
                dx[b, n, c] = d if u[b, n, c] > 0 else slope[c] * d
            for c in range(channels):
                v = u[b, n, c]
                dslope[c] += dy[b, n, c] * (zero if v > 0 else v)
            for c in range(channels):
                dshift_in[c] -= dx[b, n, c]
            for c in range(channels):
                dshift_out[c] += dy[b, n, c]
            first = (b * tokens + n) * channels
            dbefore[n] -= pairwise_sum(dxs, first, channels)
            dafter[n] += pairwise_sum(dys, first, channels)
