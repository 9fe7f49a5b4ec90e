"""What attention hands on: its normalised context, the shortcuts, the value term [SPEC 6.1, 6.2].

    o = RPReLU(LayerNorm(context) + m_q + m_k + … + value term)

The value term is m_v, or with attention="differential" lam_s m_v - lam_n neighbour_mean(m_v).
The sum runs from left to right, queries and keys in the order of computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import heads, projection
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.run import Run, pick


class Cache(NamedTuple):
    norm: ops.layer_norm.Cache
    neighbours: ops.neighbours.Cache | None  # with attention="differential"
    differential: ops.differential.Cache | None
    rprelu: ops.rprelu.Cache


def forward(
    params: Params, context: np.ndarray, m: Mapping[str, np.ndarray], run: Run, *, name: str
) -> tuple[np.ndarray, Cache]:
    """context (B nW, heads, M M, d), m: t -> (B, N, C) -> o (B, N, C)."""
    config, backend, tap, stage = run
    norm, norm_cache = backend.layer_norm.forward(
        heads.join(context, stage), **params["norm"], eps=config.norm_eps
    )  # (B, N, C)
    y, mean = norm, None
    for t in config.attention_inputs[:-1]:
        y = y + m[t]
    value_term, neighbours_cache, differential_cache = m["v"], None, None
    if config.attention == "differential":
        mean, neighbours_cache = backend.neighbours.forward(m["v"], stage.grid, config.neighbours)
        value_term, differential_cache = backend.differential.forward(
            m["v"], mean, params["shortcut"], params["neighbour"]
        )
    out, rprelu_cache = backend.rprelu.forward(y + value_term, **params["rprelu"])
    if tap is not None:
        _tap_forward(params, norm, mean, out, run, name)
    return out, Cache(norm_cache, neighbours_cache, differential_cache, rprelu_cache)


def backward(
    dout: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Params]:
    """dout (B, N, C) -> (dcontext (B nW, heads, M M, d), gradient of the shortcut of every query
    and key, gradient of m_v through the value term, gradients of the parameters)."""
    config, backend, tap, stage = run
    dsum, *drprelu = backend.rprelu.backward(dout, cache.rprelu)
    # forward was the argument of RPReLU = LayerNorm(context) + m_q + m_k + … + value term
    dmerged, dweight, dbias = backend.layer_norm.backward(dsum, cache.norm)
    dcontext = heads.cut(dmerged, stage)
    grads: Params = {
        "norm": {"weight": dweight, "bias": dbias},
        "rprelu": dict(zip(params["rprelu"], drprelu, strict=False)),
    }
    dvalue, dmean = dsum, None
    if cache.differential is not None:
        dvalue, dmean, grads["shortcut"], grads["neighbour"] = backend.differential.backward(
            dsum, cache.differential
        )
        dvalue = dvalue + backend.neighbours.backward(dmean, cache.neighbours)[0]
    if tap is not None:
        _tap_backward(params, dout, dsum, dmean, dcontext, grads, run, name)
    return dcontext, dsum, dvalue, grads


def tap_shortcut(params: Params, dm: np.ndarray, t: str, run: Run, *, name: str) -> None:
    """The gradient of m_t: through the sum in front of RPReLU, and through its heads."""
    config, _, tap, stage = run
    join = heads.join_values if t == "v" else heads.join

    def plain(dsum, dz):
        return dsum + join(dz, stage)

    def differential(dsum, dz, dmean):
        _, cache = ops.neighbours.forward(np.zeros_like(dsum), stage.grid, config.neighbours)
        dvalue = params["shortcut"] * dsum + ops.neighbours.backward(dmean, cache)[0]
        return dvalue + join(dz, stage)

    read = [f"grads/{name}.norm.out", f"grads/{name}.{t}.head_z"]
    if t == "v" and config.attention == "differential":
        tap(f"grads/{name}.v.out", dm, differential, [*read, f"grads/{name}.neighbour_mean"])
    else:
        tap(f"grads/{name}.{t}.out", dm, plain, read)


def _reads(config: Config, name: str) -> list[str]:
    """Taps of the terms in front of RPReLU: the norm, m_t for every t, the neighbour mean."""
    read = [f"{name}.norm.out", *(f"{name}.{t}.out" for t in config.attention_inputs)]
    return read + [f"{name}.neighbour_mean"] * (config.attention == "differential")


def _activate(params: Params, config: Config, *values: np.ndarray):
    """RPReLU and its cache from the values of `_reads`."""
    count = len(config.attention_inputs)
    y, shortcuts, value_term = values[0], values[1:count], values[count]
    if config.attention == "differential":
        value_term, _ = ops.differential.forward(
            value_term, values[-1], params["shortcut"], params["neighbour"]
        )
    for shortcut in shortcuts:
        y = y + shortcut
    return ops.rprelu.forward(y + value_term, **params["rprelu"])


def _normalise(params: Params, run: Run, context: np.ndarray):
    merged = heads.join(context, run.stage)
    return ops.layer_norm.forward(merged, **params["norm"], eps=run.config.norm_eps)


def _tap_forward(params: Params, norm, mean, out, run: Run, name: str) -> None:
    config, _, tap, stage = run

    def neighbour_mean(value):
        return ops.neighbours.forward(value, stage.grid, config.neighbours)[0]

    def normalise(context):
        return _normalise(params, run, context)[0]

    def activate(*values):
        return _activate(params, config, *values)[0]

    tap(f"{name}.norm.out", norm, normalise, [f"{name}.context"])
    if mean is not None:
        tap(f"{name}.neighbour_mean", mean, neighbour_mean, [f"{name}.v.out"])
    tap(f"{name}.out", out, activate, _reads(config, name))


def _tap_backward(
    params: Params, dout, dsum, dmean, dcontext, grads: Params, run: Run, name: str
) -> None:
    config, _, tap, stage = run

    def activation(dout, *values):
        return ops.rprelu.backward(dout, _activate(params, config, *values)[1])

    def normalisation(dnorm, context):
        return ops.layer_norm.backward(dnorm, _normalise(params, run, context)[1])

    def context_gradient(dnorm, context):
        return heads.cut(normalisation(dnorm, context)[0], stage)

    tap(f"grads/{name}.out", dout, projection.input_gradient, projection.reads(f"{name}.proj"))
    read = [f"grads/{name}.out", *_reads(config, name)]
    for i, key in enumerate(params["rprelu"]):
        op = pick(activation, i + 1)
        tap(f"grads/param.{name}.rprelu.{key}", grads["rprelu"][key], op, read)
    tap(f"grads/{name}.norm.out", dsum, pick(activation, 0), read)
    if dmean is not None:
        _tap_differential(params, dmean, grads, run, name)
    read = [f"grads/{name}.norm.out", f"{name}.context"]
    for i, key in enumerate(("weight", "bias")):
        op = pick(normalisation, i + 1)
        tap(f"grads/param.{name}.norm.{key}", grads["norm"][key], op, read)
    tap(f"grads/{name}.context", dcontext, context_gradient, read)


def _tap_differential(params: Params, dmean, grads: Params, run: Run, name: str) -> None:
    tap, dsum = run.tap, f"grads/{name}.norm.out"

    def mean_gradient(dsum):
        return -params["neighbour"] * dsum

    def shortcut_gradient(dsum, value):
        return (dsum * value).sum(axis=(0, 1))

    def neighbour_gradient(dsum, mean):
        return -(dsum * mean).sum(axis=(0, 1))

    read = [dsum, f"{name}.neighbour_mean"]
    tap(f"grads/param.{name}.neighbour", grads["neighbour"], neighbour_gradient, read)
    read = [dsum, f"{name}.v.out"]
    tap(f"grads/param.{name}.shortcut", grads["shortcut"], shortcut_gradient, read)
    tap(f"grads/{name}.neighbour_mean", dmean, mean_gradient, [dsum])
