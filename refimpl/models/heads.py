"""Heads of attention: channels to heads and back, and their signs [SPEC 1, 6.1, 6.7].

    b_t = sign(m_t + move_t)          channel c belongs to head c // d

Queries and keys are (B, heads, N, d), values (B, heads, d, N): the last axis is the one that a
product reduces. With windows they are cut, each window in the place of an image: B nW for B, M M
for N; without them nW is 1 and M M is N.
"""

from __future__ import annotations

import numpy as np

from refimpl import ops
from refimpl.models.config import Config
from refimpl.models.run import Run, is_positive, located
from refimpl.models.stage import Stage

Cache = ops.sign.Cache | None  # None in stage "none"


@located
def forward(
    m: np.ndarray, move: np.ndarray, run: Run, *, name: str, values: bool
) -> tuple[np.ndarray, Cache]:
    """m (B, N, C), move (C,) -> b, for queries and keys or, where `values`, for values."""
    config, backend, tap, stage = run
    to_heads = cut_values if values else cut
    z = to_heads(m + move, stage)
    if tap is not None:
        tap(f"{name}.head_z", z, lambda m: to_heads(m + move, stage), [f"{name}.out"])
    if config.binarize == "none":
        return z, None
    if tap is not None:
        tap(f"{name}.head_bit", is_positive(z), is_positive, [f"{name}.head_z"])
    return backend.sign.forward(z, config.ste)


def backward(
    db: np.ndarray, cache: Cache, run: Run, *, name: str, values: bool
) -> tuple[np.ndarray, np.ndarray]:
    """db like b -> (dm (B, N, C), dmove (C,))."""
    from_heads = join_values if values else join
    (dz,) = (db,) if cache is None else run.backend.sign.backward(db, cache)
    dm = from_heads(dz, run.stage)
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
        return from_heads(dz, run.stage).sum(axis=(0, 1))

    z_name = f"grads/{name}.head_z"
    if binary:
        run.tap(z_name, dz, surrogate, [f"grads/{name}.head_bit", f"{name}.head_z"])
    run.tap(f"grads/param.{name}_move", dmove, move_gradient, [z_name])


def cut(x: np.ndarray, stage: Stage) -> np.ndarray:
    """(B, N, C) -> (B nW, heads, M M, d)."""
    if stage.window:
        x, _ = ops.windows.forward(x, stage.grid, stage.window, stage.shift)
    return split(x, stage.heads)


def join(x: np.ndarray, stage: Stage) -> np.ndarray:
    """(B nW, heads, M M, d) -> (B, N, C), the inverse of `cut` and its backward."""
    x = merge(x)
    if stage.window:
        (x,) = ops.windows.backward(x, ops.windows.Cache(stage.grid, stage.window, stage.shift))
    return x


def cut_values(x: np.ndarray, stage: Stage) -> np.ndarray:
    """(B, N, C) -> (B nW, heads, d, M M)."""
    return cut(x, stage).swapaxes(-1, -2)


def join_values(x: np.ndarray, stage: Stage) -> np.ndarray:
    """(B nW, heads, d, M M) -> (B, N, C)."""
    return join(x.swapaxes(-1, -2), stage)


def mask(stage: Stage, windows: int) -> np.ndarray | None:
    """bool (B nW, 1, M M, M M), True for the keys that a query sees; None where it sees all.

    `windows` is B nW.
    """
    if not stage.shift:
        return None
    seen = ops.windows.mask(stage.grid, stage.window, stage.shift)  # (nW, M M, M M)
    return np.tile(seen[:, None], (windows // stage.windows, 1, 1, 1))


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
