"""Heads of attention: channels to heads and back, and their signs [SPEC 1, 6.1].

    b_t = sign(m_t + move_t)          channel c belongs to head c // d

Queries and keys are (B, heads, N, d), values (B, heads, d, N): the last axis is the one that a
product reduces.
"""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.models.config import Config
from refimpl.models.run import Run, is_positive, located

Cache = ops.sign.Cache | None  # None in stage "none"


@located
def forward(
    m: np.ndarray, move: np.ndarray, run: Run, *, name: str, values: bool
) -> tuple[np.ndarray, Cache]:
    """m (B, N, C), move (C,) -> b, for queries and keys or, where `values`, for values."""
    config, backend, tap = run
    to_heads = split_values if values else split
    z = to_heads(m + move, config.heads)
    if tap is not None:
        tap(f"{name}.head_z", z, lambda m: to_heads(m + move, config.heads), [f"{name}.out"])
    if config.binarize == "none":
        return z, None
    if tap is not None:
        tap(f"{name}.head_bit", is_positive(z), is_positive, [f"{name}.head_z"])
    return backend.sign.forward(z, config.ste)


def backward(
    db: np.ndarray, cache: Cache, run: Run, *, name: str, values: bool
) -> tuple[np.ndarray, np.ndarray]:
    """db like b -> (dm (B, N, C), dmove (C,))."""
    from_heads = merge_values if values else merge
    (dz,) = (db,) if cache is None else run.backend.sign.backward(db, cache)
    dm = from_heads(dz)
    dmove = dm.sum(axis=(0, 1))
    if run.tap is not None:
        _tap_backward(dz, dmove, from_heads, cache is not None, run, name)
    return dm, dmove


def binary_name(name: str, config: Config) -> str:
    """The tap of what enters the products: the bit, or z where nothing is binary."""
    return f"{name}.head_z" if config.binarize == "none" else f"{name}.head_bit"


def _tap_backward(dz, dmove, from_heads, binary: bool, run: Run, name: str) -> None:
    def surrogate(db, z):
        return ops.sign.backward(db, ops.sign.Cache(z, run.config.ste))[0]

    def move_gradient(dz):
        return from_heads(dz).sum(axis=(0, 1))

    z_name = f"grads/{name}.head_z"
    if binary:
        run.tap(z_name, dz, surrogate, [f"grads/{name}.head_bit", f"{name}.head_z"])
    run.tap(f"grads/param.{name}_move", dmove, move_gradient, [z_name])


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, N, C) -> (B, heads, N, d), a view."""
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, heads, channels // heads).transpose(0, 2, 1, 3)


def merge(x: np.ndarray) -> np.ndarray:
    """(B, heads, N, d) -> (B, N, C)."""
    batch, heads, tokens, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * d)


def split_values(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, N, C) -> (B, heads, d, N), a view."""
    return split(x, heads).swapaxes(-1, -2)


def merge_values(x: np.ndarray) -> np.ndarray:
    """(B, heads, d, N) -> (B, N, C)."""
    return merge(x.swapaxes(-1, -2))
