"""Differential term of informative attention [SPEC 6.2, R1].

    y = lam_s * value - lam_n * neighbour_mean          lam_s "shortcut", lam_n "neighbour"

What a boolean attention matrix forgets, the differences between a token and its neighbours, comes
back here. At lam_s = 1, lam_n = 0 (the start of training) it is the baseline's plain shortcut.

>>> forward(np.array([[[5.0]]]), np.array([[[3.0]]]), np.array([2.0]), np.array([1.0]))[0].item()
7.0
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_shape


class Cache(NamedTuple):
    value: np.ndarray  # (B, N, C)
    neighbour_mean: np.ndarray  # (B, N, C)
    shortcut: np.ndarray  # (C,)
    neighbour: np.ndarray  # (C,)


def forward(
    value: np.ndarray, neighbour_mean: np.ndarray, shortcut: np.ndarray, neighbour: np.ndarray
) -> tuple[np.ndarray, Cache]:
    """value, neighbour_mean (B, N, C); shortcut, neighbour (C,) -> y (B, N, C)."""
    cache = Cache(value, neighbour_mean, shortcut, neighbour)
    float_dtype("differential", **cache._asdict())
    require_shape("differential", "value", value, (None, None, None))
    require_shape("differential", "neighbour_mean", neighbour_mean, value.shape)
    require_shape("differential", "shortcut", shortcut, value.shape[-1:])
    require_shape("differential", "neighbour", neighbour, value.shape[-1:])
    return shortcut * value - neighbour * neighbour_mean, cache


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, ...]:
    """dy (B, N, C) -> (dvalue, dneighbour_mean like dy; dshortcut, dneighbour (C,))."""
    value, neighbour_mean, shortcut, neighbour = cache
    dshortcut = (dy * value).sum(axis=(0, 1))
    dneighbour = -(dy * neighbour_mean).sum(axis=(0, 1))
    return shortcut * dy, -neighbour * dy, dshortcut, dneighbour
