"""From the outputs of all stages to the tokens that are decoded: decoder="fpn" [SPEC 10].

lateral_s = LayerNorm_s(x_s) W_s^T + b_s              that of the last stage is the network's `norm`
top_s     = lateral_s + top_{s+1} on the grid of stage s             top_{S-1} = lateral_{S-1}
smooth_s  = conv_s(top_s)
y         = GELU(sum of all smooth_s on the grid of stage 0)

Between grids values are interpolated bilinearly. All of it is real.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models.config import Config
from refimpl.models.fork import Fork
from refimpl.models.linear_decoder import PYRAMID, off_grid, on_grid
from refimpl.models.params import Params
from refimpl.models.run import Run, pick


class Cache(NamedTuple):
    """A list has an entry a stage."""

    norms: list[ops.layer_norm.Cache]  # not of the last stage
    laterals: list[ops.linear.Cache]
    down: list[ops.interpolate.Cache]  # from the grid of the next stage; not of the last stage
    smooths: list[ops.convolution.Cache]
    up: list[ops.interpolate.Cache]  # to the grid of stage 0
    gelu: ops.gelu.Cache


def forward(params: Params, features: list[np.ndarray], run: Run) -> tuple[np.ndarray, Cache]:
    """params of the decoder, features (B, N_s, C_s) of each stage -> y (B, N_0, D).

    The feature of the last stage is "norm.out", those of the others are what their blocks gave.
    """
    laterals, norm_caches, lateral_caches = _laterals(params, features, run)
    tops, down_caches = _tops(laterals, run)
    smooths, smooth_caches = _smooths(params, tops, run)
    total, up_caches = _sum(smooths, run)
    y, gelu_cache = run.backend.gelu.forward(total)
    if run.tap is not None:
        run.tap(PYRAMID, y, pick(ops.gelu.forward, 0), ["decoder.sum"])
    return y, Cache(norm_caches, lateral_caches, down_caches, smooth_caches, up_caches, gelu_cache)


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run
) -> tuple[np.ndarray, dict[str, Fork], Params]:
    """dy (B, N_0, D) -> (gradient of "norm.out", of the other features by tap, of the params)."""
    config, backend, tap, _ = run
    grids, last = _grids(config), len(cache.norms)
    (dtotal,) = backend.gelu.backward(dy, cache.gelu)
    if tap is not None:
        tap("grads/decoder.sum", dtotal, _gelu_backward, [f"grads/{PYRAMID}", "decoder.sum"])
    grads: Params = {}
    forks: dict[str, Fork] = {}
    dtop = None  # of the level before
    for s in range(last + 1):
        dsmooth = _adjoint(dtotal, grids[0], cache.up[s], backend)
        through_conv, *smooth = backend.convolution.backward(dsmooth, cache.smooths[s])
        dtop = (
            through_conv
            if s == 0
            else through_conv + _adjoint(dtop, grids[s - 1], cache.down[s - 1], backend)
        )
        dnorm, *lateral = backend.linear.backward(dtop, cache.laterals[s])
        grads[str(s)] = {"lateral": _affine(lateral), "smooth": _affine(smooth)}
        if tap is not None:
            _tap_level(params, cache, s, dsmooth, dtop, dnorm, grads[str(s)], run)
        if s < last:
            dx, *norm = backend.layer_norm.backward(dnorm, cache.norms[s])
            grads[str(s)]["norm"] = _affine(norm)
            forks[source(config, s)] = _fork(params, s, dx, grads[str(s)], run)
    return dnorm, forks, grads


def source(config: Config, s: int) -> str:
    """The tap that level s reads: what the last block of its stage gives, or the last norm."""
    if s == len(config.depths) - 1:
        return "norm.out"
    return f"blocks.{sum(config.depths[: s + 1]) - 1}.out"


def _laterals(params: Params, features: list[np.ndarray], run: Run):
    backend, tap = run.backend, run.tap
    laterals, norm_caches, lateral_caches = [], [], []
    for s, x in enumerate(features):
        level, read = params[str(s)], source(run.config, s)
        if "norm" in level:
            x, cache = backend.layer_norm.forward(x, **level["norm"], eps=run.config.norm_eps)
            norm_caches.append(cache)
            if tap is not None:
                tap(f"decoder.{s}.norm.out", x, pick(_norm(level, run.config), 0), [read])
        y, cache = backend.linear.forward(x, **level["lateral"])
        laterals.append(y)
        lateral_caches.append(cache)
        if tap is not None:
            op = pick(_linear(level), 0)
            tap(f"decoder.{s}.lateral.out", y, op, [_normalised(run.config, s)])
    return laterals, norm_caches, lateral_caches


def _tops(laterals: list[np.ndarray], run: Run):
    """Of all levels, from the last one on: what is above comes down and is added."""
    grids, tops, caches = _grids(run.config), list(laterals), []
    for s in reversed(range(len(laterals) - 1)):
        above, cache = _interpolated(tops[s + 1], grids[s + 1], grids[s], run.backend)
        tops[s] = laterals[s] + above
        caches.insert(0, cache)
        if run.tap is not None:
            read = [f"decoder.{s}.lateral.out", _top(run.config, s + 1)]
            run.tap(_top(run.config, s), tops[s], _come_down(grids[s + 1], grids[s]), read)
    return tops, caches


def _smooths(params: Params, tops: list[np.ndarray], run: Run):
    smooths, caches = [], []
    for s, (top, grid) in enumerate(zip(tops, _grids(run.config), strict=True)):
        level = params[str(s)]
        y, cache = run.backend.convolution.forward(top, **level["smooth"], grid=grid)
        smooths.append(y)
        caches.append(cache)
        if run.tap is not None:
            op = pick(_convolution(level, grid), 0)
            run.tap(f"decoder.{s}.smooth.out", y, op, [_top(run.config, s)])
    return smooths, caches


def _sum(smooths: list[np.ndarray], run: Run):
    grids = _grids(run.config)

    def added(backend, *smooths):
        placed = [
            _interpolated(x, grid, grids[0], backend)
            for x, grid in zip(smooths, grids, strict=True)
        ]
        return sum(x for x, _ in placed), [cache for _, cache in placed]

    total, caches = added(run.backend, *smooths)
    if run.tap is not None:
        read = [f"decoder.{s}.smooth.out" for s in range(len(smooths))]
        run.tap("decoder.sum", total, lambda *read: added(ops, *read)[0], read)
    return total, caches


def _grids(config: Config) -> list[tuple[int, int]]:
    return [stage.grid for stage in config.stages]


def _top(config: Config, s: int) -> str:
    """The tap that is top_s."""
    return f"decoder.{s}.{'top' if s < len(config.depths) - 1 else 'lateral.out'}"


def _normalised(config: Config, s: int) -> str:
    return f"decoder.{s}.norm.out" if s < len(config.depths) - 1 else "norm.out"


def _interpolated(
    x: np.ndarray, grid: tuple[int, int], size: tuple[int, int], backend: Any
) -> tuple[np.ndarray, ops.interpolate.Cache]:
    """Tokens (B, gh*gw, D) -> on another grid (B, h*w, D)."""
    image, cache = backend.interpolate.forward(on_grid(x, grid), size, "bilinear")
    return off_grid(image), cache


def _adjoint(
    dy: np.ndarray, size: tuple[int, int], cache: ops.interpolate.Cache, backend: Any
) -> np.ndarray:
    """(B, h*w, D) -> (B, gh*gw, D)"""
    return off_grid(backend.interpolate.backward(on_grid(dy, size), cache)[0])


def _affine(grads: list[np.ndarray]) -> Params:
    return {"weight": grads[0], "bias": grads[1]}


# What taps are handed, and the taps of backward


def _norm(level: Params, config: Config):
    return lambda x: ops.layer_norm.forward(x, **level["norm"], eps=config.norm_eps)


def _linear(level: Params):
    return lambda x: ops.linear.forward(x, **level["lateral"])


def _convolution(level: Params, grid: tuple[int, int]):
    return lambda x: ops.convolution.forward(x, **level["smooth"], grid=grid)


def _come_down(grid: tuple[int, int], size: tuple[int, int]):
    return lambda lateral, above: lateral + _interpolated(above, grid, size, ops)[0]


def _gelu_backward(dy, total):
    return ops.gelu.backward(dy, ops.gelu.forward(total)[1])[0]


def _tap_level(params, cache: Cache, s: int, dsmooth, dtop, dnorm, grads: Params, run: Run) -> None:
    config, tap, level = run.config, run.tap, params[str(s)]
    grids, name = _grids(config), f"decoder.{s}"

    def convolution(dsmooth, top):
        return ops.convolution.backward(dsmooth, _convolution(level, grids[s])(top)[1])

    def top_gradient(dsmooth, top, dbelow):
        return convolution(dsmooth, top)[0] + _adjoint(dbelow, grids[s - 1], cache.down[s - 1], ops)

    def linear(dlateral, x):
        return ops.linear.backward(dlateral, _linear(level)(x)[1])

    def placed(dtotal):
        return _adjoint(dtotal, grids[0], cache.up[s], ops)

    tap(f"grads/{name}.smooth.out", dsmooth, placed, ["grads/decoder.sum"])
    read = [f"grads/{name}.smooth.out", _top(config, s)]
    _tap_params(f"{name}.smooth", grads["smooth"], convolution, read, run)
    top = f"grads/{_top(config, s)}"
    if s == 0:
        tap(top, dtop, pick(convolution, 0), read)
    else:
        tap(top, dtop, top_gradient, [*read, f"grads/{_top(config, s - 1)}"])
    dlateral = f"grads/{name}.lateral.out"
    if dlateral != top:
        tap(dlateral, dtop, lambda dtop: dtop, [top])
    read = [dlateral, _normalised(config, s)]
    _tap_params(f"{name}.lateral", grads["lateral"], linear, read, run)
    tap(f"grads/{_normalised(config, s)}", dnorm, pick(linear, 0), read)


def _fork(params: Params, s: int, dx: np.ndarray, grads: Params, run: Run) -> Fork:
    """What level s sends back to the output of its stage."""
    level, name = params[str(s)], f"decoder.{s}.norm"

    def normalisation(dnorm, x):
        return ops.layer_norm.backward(dnorm, _norm(level, run.config)(x)[1])

    read = [f"grads/{name}.out", source(run.config, s)]
    if run.tap is not None:
        _tap_params(name, grads["norm"], normalisation, read, run)
    return Fork(dx, pick(normalisation, 0), read)


def _tap_params(name: str, grads: Params, backward, read: list[str], run: Run) -> None:
    """Gradients of a weight and a bias, the second and third that `backward` gives."""
    for i, leaf in enumerate(("weight", "bias")):
        run.tap(f"grads/param.{name}.{leaf}", grads[leaf], pick(backward, i + 1), read)
