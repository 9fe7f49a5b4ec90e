"""Parameters for images of another size: what has an entry a token is interpolated [SPEC 6.3].

pos_embed (1, N, C)                    each channel on the patch grid, bicubic
token_shift_in, token_shift_out (N,)   likewise, each a map of its own, on the grid of its stage
the entry of the class token           is kept
attn.alpha                             times N / N', both with the class token: it goes with 1/N
every other parameter                  is the same array
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import ConfigError
from refimpl.models.config import Config
from refimpl.models.params import Params, block_of, flatten, unflatten
from refimpl.models.run import Tap

PER_TOKEN = ("pos_embed", "token_shift_in", "token_shift_out")
ALPHA = ".attn.alpha"
GRADIENT = "grads/param."


class Cache(NamedTuple):
    config: Config  # with the new image_size
    backend: Any
    interpolations: dict[int, ops.interpolate.Cache]  # by stage, where it has maps to interpolate
    ratio: float  # that alpha is multiplied by


def forward(
    params: Params, config: Config, image_size: tuple[int, int], backend: Any = ops
) -> tuple[Params, Cache]:
    """Parameters of `config` -> those of `config.replace(image_size=image_size)`.

    The very same ones where the configuration has that size. ConfigError where the patch does not
    divide it, or where windows do not fit.
    """
    if image_size == config.image_size:
        return params, Cache(config, backend, {}, 1.0)
    resized = config.replace(image_size=image_size)
    ratio = next(config.stages).keys / next(resized.stages).keys  # 1 where windows keep their size
    flat, interpolations = _scaled(flatten(params), ratio), {}
    for s, (own, new) in enumerate(zip(config.stages, resized.stages, strict=True)):
        if own.window != new.window:
            raise ConfigError(
                f"config: image_size {image_size} gives stage {s} windows of {new.window}; "
                f"expected {own.window}, for which its position bias was made"
            )
        if group := _per_token(flat, config, s):
            maps, cache = backend.interpolate.forward(_maps(group, own.grid), new.grid)
            interpolations[s] = cache
            flat |= _with_maps(group, maps, own.grid)
    return unflatten(flat), Cache(resized, backend, interpolations, ratio)


def backward(grads: Params, cache: Cache) -> Params:
    """Gradients of the resized parameters -> those of the parameters as they were given."""
    if not cache.interpolations:
        return grads
    return unflatten(_adjoint(flatten(grads), cache))


def listener(tap: Tap | None, cache: Cache) -> Tap | None:
    """`tap`, to which a parameter's gradient is that of the parameter as it was given."""
    if tap is None or not cache.interpolations:
        return tap

    def listen(name, value, op, inputs):
        path = name.removeprefix(GRADIENT)

        def adjoint(gradient):
            return _adjoint({path: gradient}, cache)[path]

        if name.startswith(GRADIENT) and name.endswith((*PER_TOKEN, ALPHA)):
            tap(name, adjoint(value), lambda *read: adjoint(op(*read)), inputs)
        else:
            tap(name, value, op, inputs)

    return listen


def _adjoint(grads: dict[str, np.ndarray], cache: Cache) -> dict[str, np.ndarray]:
    """Gradients by path, all of them or some."""
    stages = list(cache.config.stages)
    for s, interpolation in cache.interpolations.items():
        if group := _per_token(grads, cache.config, s):
            (dmaps,) = cache.backend.interpolate.backward(
                _maps(group, stages[s].grid), interpolation
            )
            grads = grads | _with_maps(group, dmaps, stages[s].grid)
    return _scaled(grads, cache.ratio)


def _scaled(flat: dict[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """`flat` with every alpha, or its gradient, times `ratio`."""
    scaled = {p: np.asarray(v * v.dtype.type(ratio)) for p, v in flat.items() if p.endswith(ALPHA)}
    return flat | scaled


def _per_token(flat: dict[str, np.ndarray], config: Config, s: int) -> dict[str, np.ndarray]:
    """What has an entry a token of stage s."""
    return {
        path: value
        for path, value in flat.items()
        if path.endswith(PER_TOKEN) and _stage(path, config) == s
    }


def _stage(path: str, config: Config) -> int:
    if path.startswith("blocks."):
        return config.place_of(block_of(path))[0]
    # a merge leads to the stage behind it
    return int(path.split(".")[1]) + 1 if path.startswith("merges.") else 0


def _maps(group: dict[str, np.ndarray], grid: tuple[int, int]) -> np.ndarray:
    """All of them on the grid, one behind the other: (K, gh, gw)."""
    maps = np.concatenate([_split(value, grid)[1] for value in group.values()])
    return np.ascontiguousarray(maps)  # BLAS adds in another order where the layout is another


def _with_maps(
    group: dict[str, np.ndarray], maps: np.ndarray, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """`group` on `grid` with other maps (K, h, w) in the places of its own."""
    found = {}
    for path, value in group.items():
        first, own = _split(value, grid)
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
