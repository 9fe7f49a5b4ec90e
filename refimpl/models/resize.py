"""Parameters for images of another size: what has an entry a token is interpolated [SPEC 6.3].

pos_embed (1, N, C)                    each channel on the patch grid, bicubic
token_shift_in, token_shift_out (N,)   likewise, each a map of its own
the entry of the class token           is kept
every other parameter                  is the same array
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models.config import Config
from refimpl.models.params import Params, flatten, unflatten
from refimpl.models.run import Tap

PER_TOKEN = ("pos_embed", "token_shift_in", "token_shift_out")
GRADIENT = "grads/param."


class Cache(NamedTuple):
    config: Config  # with the new image_size
    backend: Any
    interpolations: dict[str, ops.interpolate.Cache]  # by path; empty where the size is the same


def forward(
    params: Params, config: Config, image_size: tuple[int, int], backend: Any = ops
) -> tuple[Params, Cache]:
    """Parameters of `config` -> those of `config.replace(image_size=image_size)`.

    The very same ones where the configuration has that size. ConfigError where the patch does not
    divide it.
    """
    if image_size == config.image_size:
        return params, Cache(config, backend, {})
    resized = config.replace(image_size=image_size)
    flat, interpolations = flatten(params), {}
    for path, value in flat.items():
        if path.endswith(PER_TOKEN):
            first, maps = _split(value, config.grid)
            maps, interpolations[path] = backend.interpolate.forward(maps, resized.grid)
            flat[path] = _join(first, maps, value.ndim)
    return unflatten(flat), Cache(resized, backend, interpolations)


def backward(grads: Params, cache: Cache) -> Params:
    """Gradients of the resized parameters -> those of the parameters as they were given."""
    if not cache.interpolations:
        return grads
    return unflatten({path: _adjoint(path, d, cache) for path, d in flatten(grads).items()})


def listener(tap: Tap | None, cache: Cache) -> Tap | None:
    """`tap`, to which a parameter's gradient is that of the parameter as it was given."""
    if tap is None or not cache.interpolations:
        return tap

    def listen(name, value, op, inputs):
        if name.startswith(GRADIENT):
            adjoint = functools.partial(_adjoint, name.removeprefix(GRADIENT), cache=cache)
            tap(name, adjoint(value), lambda *read: adjoint(op(*read)), inputs)
        else:
            tap(name, value, op, inputs)

    return listen


def _adjoint(path: str, dvalue: np.ndarray, cache: Cache) -> np.ndarray:
    if path not in cache.interpolations:
        return dvalue
    first, dmaps = _split(dvalue, cache.config.grid)
    (dmaps,) = cache.backend.interpolate.backward(dmaps, cache.interpolations[path])
    return _join(first, dmaps, dvalue.ndim)


def _split(value: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """value (1, N, C), or (N,) with C = 1 -> class token's (0 or 1, C), maps (C, gh, gw)."""
    entries = value.reshape(-1, value.shape[-1] if value.ndim == 3 else 1)  # (N, C)
    first = len(entries) - grid[0] * grid[1]
    return entries[:first], entries[first:].T.reshape(-1, *grid)


def _join(first: np.ndarray, maps: np.ndarray, ndim: int) -> np.ndarray:
    """The inverse of `_split`; the result has `ndim` axes."""
    patches = maps.reshape(len(maps), -1).T
    entries = np.ascontiguousarray(np.concatenate([first, patches]))  # (N, C)
    return entries[None] if ndim == 3 else entries[:, 0]
