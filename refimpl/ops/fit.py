"""The shortcut around a binary linear map, fitted to its number of outputs [SPEC 5].

    O = I    x
    O > I    x repeated O / I times, end to end: output channel o gets x[o mod I] (tiled)
    O < I    means of I / O channels that lie side by side, added from left to right

>>> x = np.array([1.0, 2.0])
>>> forward(x, 4)[0], forward(forward(x, 4)[0], 2)[0]
(array([1., 2., 1., 2.]), array([1.5, 1.5]))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype


class Cache(NamedTuple):
    inputs: int  # I
    outputs: int  # O


def forward(x: np.ndarray, outputs: int) -> tuple[np.ndarray, Cache]:
    """x (..., I) -> y (..., O); one of I and O must divide the other. O = I gives x itself."""
    float_dtype("fit", x=x)
    inputs = x.shape[-1] if x.ndim else 0
    if min(inputs, outputs) < 1:
        raise ShapeError(f"fit: x has shape {x.shape}, {outputs} outputs; expected at least 1 each")
    if max(inputs, outputs) % min(inputs, outputs):
        raise ShapeError(
            f"fit: x has {inputs} channels; expected a divisor or multiple of {outputs}"
        )
    cache = Cache(inputs, outputs)
    if outputs == inputs:
        return x, cache
    if outputs > inputs:
        return np.concatenate([x] * (outputs // inputs), axis=-1), cache
    neighbours = x.reshape(*x.shape[:-1], outputs, inputs // outputs)
    # one after the other: NumPy's mean over an axis this short takes ten times as long
    total = neighbours[..., 0].copy()
    for i in range(1, inputs // outputs):
        total += neighbours[..., i]
    return total / (inputs // outputs), cache


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (..., O) -> (dx (..., I),)."""
    inputs, outputs = cache
    if outputs == inputs:
        return (dy,)
    if outputs > inputs:
        # forward was y[o] = x[o mod I]
        return (dy.reshape(*dy.shape[:-1], outputs // inputs, inputs).sum(axis=-2),)
    # forward was y[o] = mean of I / O neighbours
    return (np.repeat(dy / (inputs // outputs), inputs // outputs, axis=-1),)
