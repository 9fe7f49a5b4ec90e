"""Improved RPReLU: a PReLU between learned shifts, per channel and per token [SPEC 3, R6].

    u = x - shift_in - token_shift_in[:, None]
    y = where(u > 0, u, slope * u) + shift_out + token_shift_out[:, None]

Without the token shifts it is ReActNet's RPReLU; with them it is DIDB-ViT's. u = 0 is on the
sloped side, which only dslope could notice, and there it adds 0.

>>> x, zero = np.array([[[1.0], [-1.0]]]), np.zeros(1)           # one image, two tokens, C = 1
>>> forward(x, np.array([0.5]), np.array([0.25]), zero, np.zeros(2), np.array([10.0, 20.0]))[0]
array([[[10.5  ],
        [19.625]]])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_shape


class Cache(NamedTuple):
    shifted: np.ndarray  # (B, N, C) u: its sign picks the branch, its value is dslope's factor
    slope: np.ndarray  # (C,)
    per_token: bool


def forward(
    x: np.ndarray,
    shift_in: np.ndarray,
    slope: np.ndarray,
    shift_out: np.ndarray,
    token_shift_in: np.ndarray | None = None,
    token_shift_out: np.ndarray | None = None,
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C); shift_in, slope, shift_out (C,); token shifts (N,), both or none -> y like x."""
    per_token = token_shift_in is not None
    _check(x, shift_in, slope, shift_out, token_shift_in, token_shift_out)
    u = x - shift_in  # (B, N, C)
    if per_token:
        u -= token_shift_in[:, None]
    # where(u > 0, u, slope * u) without its branch: one of the two terms is 0
    y = slope * np.minimum(u, 0)
    y += np.maximum(u, 0)
    y += shift_out
    if per_token:
        y += token_shift_out[:, None]
    return y, Cache(u, slope, per_token)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray | None, ...]:
    """dy (B, N, C) -> (dx, dshift_in, dslope, dshift_out, dtoken_shift_in, dtoken_shift_out)."""
    u, slope, per_token = cache
    # forward was y = where(u > 0, u, slope u) + shift_out + token_shift_out
    positive = u > 0
    dx = dy * positive + slope * (dy * ~positive)  # du, and u = x - shifts
    dslope = (dy * np.minimum(u, 0)).sum(axis=(0, 1))
    dshift_in, dshift_out = -dx.sum(axis=(0, 1)), dy.sum(axis=(0, 1))
    if not per_token:
        return dx, dshift_in, dslope, dshift_out, None, None
    return dx, dshift_in, dslope, dshift_out, -dx.sum(axis=(0, 2)), dy.sum(axis=(0, 2))


def _check(x, shift_in, slope, shift_out, token_shift_in, token_shift_out) -> None:
    channel = {"shift_in": shift_in, "slope": slope, "shift_out": shift_out}
    token = {"token_shift_in": token_shift_in, "token_shift_out": token_shift_out}
    float_dtype("rprelu", x=x, **channel, **token)
    require_shape("rprelu", "x", x, (None, None, None))
    for name, array in channel.items():
        require_shape("rprelu", name, array, x.shape[-1:])
    if (token_shift_in is None) != (token_shift_out is None):
        raise ShapeError("rprelu: one token shift is missing; expected both or none")
    for name, array in token.items():
        if array is not None:
            require_shape("rprelu", name, array, x.shape[1:2])
