"""Parameters for images of another size: what has an entry a token is interpolated [SPEC 6.3].

pos_embed (1, N, C)                    each channel on the patch grid, bicubic
token_shift_in, token_shift_out (N,)   likewise, each a map of its own
the entry of the class token           is kept
every other parameter                  is the same array
"""

from __future__ import annotations

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
    interpolation: ops.interpolate.Cache | None  # of all maps; None where the size is the same


def forward(
    params: Params, config: Config, image_size: tuple[int, int], backend: Any = ops
) -> tuple[Params, Cache]:
    """Parameters of `config` -> those of `config.replace(image_size=image_size)`.

    The very same ones where the configuration has that size. ConfigError where the patch does not
    divide it.
    """
    if image_size == config.image_size:
        return params, Cache(config, backend, None)
    resized = config.replace(image_size=image_size)
    flat = flatten(params)
    maps, cache = backend.interpolate.forward(_maps(flat, config), resized.grid)
    return unflatten(_with_maps(flat, maps, config)), Cache(resized, backend, cache)


def backward(grads: Params, cache: Cache) -> Params:
    """Gradients of the resized parameters -> those of the parameters as they were given."""
    if cache.interpolation is None:
        return grads
    return unflatten(_adjoint(flatten(grads), cache))


def listener(tap: Tap | None, cache: Cache) -> Tap | None:
    """`tap`, to which a parameter's gradient is that of the parameter as it was given."""
    if tap is None or cache.interpolation is None:
        return tap

    def listen(name, value, op, inputs):
        def adjoint(gradient):
            return _adjoint({name: gradient}, cache)[name]

        if name.startswith(GRADIENT) and name.endswith(PER_TOKEN):
            tap(name, adjoint(value), lambda *read: adjoint(op(*read)), inputs)
        else:
            tap(name, value, op, inputs)

    return listen


def _adjoint(grads: dict[str, np.ndarray], cache: Cache) -> dict[str, np.ndarray]:
    """Gradients by path, all of them or some."""
    dmaps = _maps(grads, cache.config)
    (dmaps,) = cache.backend.interpolate.backward(dmaps, cache.interpolation)
    return _with_maps(grads, dmaps, cache.config)


def _maps(flat: dict[str, np.ndarray], config: Config) -> np.ndarray:
    """Whatever has an entry a token, on the patch grid, one behind the other: (K, gh, gw)."""
    per_token = (value for path, value in flat.items() if path.endswith(PER_TOKEN))
    maps = np.concatenate([_split(value, config.grid)[1] for value in per_token])
    return np.ascontiguousarray(maps)  # BLAS adds in another order where the layout is another


def _with_maps(
    flat: dict[str, np.ndarray], maps: np.ndarray, config: Config
) -> dict[str, np.ndarray]:
    """`flat` of `config` with other maps (K, h, w) in the places of its own."""
    found = dict(flat)
    for path, value in flat.items():
        if path.endswith(PER_TOKEN):
            first, own = _split(value, config.grid)
            found[path] = _join(first, maps[: len(own)], value.ndim)
            maps = maps[len(own) :]
    return found


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
