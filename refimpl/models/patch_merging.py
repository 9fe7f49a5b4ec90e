"""Patch merging between two stages: half the rows and columns, twice the channels [SPEC 6.7].

y = P(LayerNorm(neighbours(x)); 4C -> 2C)        binary; neighbours: channels of 2 x 2 side by side
  = LayerNorm(neighbours(x)) W^T                 real
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import projection
from refimpl.models.params import Params
from refimpl.models.run import Run, pick


class Cache(NamedTuple):
    merge: ops.merge_patches.Cache
    norm: ops.layer_norm.Cache
    proj: projection.Cache | ops.linear.Cache


def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C), of the stage that ends -> y (B, N / 4, 2C)."""
    backend, tap = run.backend, run.tap
    patches, merge_cache = backend.merge_patches.forward(x, run.stage.grid)  # (B, N / 4, 4C)
    norm, norm_cache = backend.layer_norm.forward(
        patches, **params["norm"], eps=run.config.norm_eps
    )
    if tap is not None:
        tap(f"{name}.patches", patches, pick(_merge(run), 0), [source])
        tap(f"{name}.norm.out", norm, pick(_norm(params, run), 0), [f"{name}.patches"])
    if run.config.block == "binary":
        y, proj_cache = projection.forward(
            params["proj"], norm, run, name=f"{name}.proj", source=f"{name}.norm.out"
        )
    else:
        y, proj_cache = backend.linear.forward(norm, **params["proj"])
        if tap is not None:
            tap(f"{name}.proj.out", y, pick(_linear(params), 0), [f"{name}.norm.out"])
    return y, Cache(merge_cache, norm_cache, proj_cache)


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dy (B, N / 4, 2C) -> (dx (B, N, C), gradients of the parameters)."""
    backend = run.backend
    if run.config.block == "binary":
        dnorm, proj = projection.backward(
            dy, params["proj"], cache.proj, run, name=f"{name}.proj", source=f"{name}.norm.out"
        )
    else:
        dnorm, dweight, _ = backend.linear.backward(dy, cache.proj)
        proj = {"weight": dweight}
    dpatches, *norm = backend.layer_norm.backward(dnorm, cache.norm)
    (dx,) = backend.merge_patches.backward(dpatches, cache.merge)
    grads = {"norm": {"weight": norm[0], "bias": norm[1]}, "proj": proj}
    if run.tap is not None:
        _tap_backward(params, dnorm, dpatches, dx, grads, run, name, source)
    return dx, grads


def _tap_backward(params, dnorm, dpatches, dx, grads: Params, run: Run, name, source) -> None:
    tap = run.tap

    def linear(dy, norm):
        return ops.linear.backward(dy, _linear(params)(norm)[1])

    def normalisation(dnorm, patches):
        return ops.layer_norm.backward(dnorm, _norm(params, run)(patches)[1])

    def unmerge(dpatches):
        return ops.merge_patches.backward(dpatches, ops.merge_patches.Cache(run.stage.grid))[0]

    if run.config.block == "binary":
        read = projection.reads(f"{name}.proj")
        tap(f"grads/{name}.norm.out", dnorm, projection.input_gradient, read)
    else:
        read = [f"grads/{name}.proj.out", f"{name}.norm.out"]
        tap(f"grads/param.{name}.proj.weight", grads["proj"]["weight"], pick(linear, 1), read)
        tap(f"grads/{name}.norm.out", dnorm, pick(linear, 0), read)
    read = [f"grads/{name}.norm.out", f"{name}.patches"]
    for i, leaf in enumerate(("weight", "bias")):
        value, op = grads["norm"][leaf], pick(normalisation, i + 1)
        tap(f"grads/param.{name}.norm.{leaf}", value, op, read)
    tap(f"grads/{name}.patches", dpatches, pick(normalisation, 0), read)
    tap(f"grads/{source}", dx, unmerge, [f"grads/{name}.patches"])


def _merge(run: Run):
    return lambda x: ops.merge_patches.forward(x, run.stage.grid)


def _norm(params: Params, run: Run):
    return lambda x: ops.layer_norm.forward(x, **params["norm"], eps=run.config.norm_eps)


def _linear(params: Params):
    return lambda x: ops.linear.forward(x, **params["proj"])
