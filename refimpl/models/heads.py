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
    config, backend, tap = run
    from_heads = merge_values if values else merge
    (dz,) = (db,) if cache is None else backend.sign.backward(db, cache)
    dm = from_heads(dz)
    dmove = dm.sum(axis=(0, 1))
    if tap is not None:
        if cache is not None:
            op = lambda db, z: ops.sign.backward(db, ops.sign.Cache(z, config.ste))[0]  # noqa: E731
            tap(f"grads/{name}.head_z", dz, op, [f"grads/{name}.head_bit", f"{name}.head_z"])
        op = lambda dz: from_heads(dz).sum(axis=(0, 1))  # noqa: E731
        tap(f"grads/param.{name}_move", dmove, op, [f"grads/{name}.head_z"])
    return dm, dmove


def binary_name(name: str, config: Config) -> str:
    """The tap of what enters the products: the bit, or z where nothing is binary."""
    return f"{name}.head_z" if config.binarize == "none" else f"{name}.head_bit"


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
