"""The binary block: attention and MLP on a residual stream [SPEC 6.1, 6.2].

    mid = x   + scale1(attention(LayerNorm1(x)))
    y   = mid + scale2(mlp(LayerNorm2(mid)))

`scale` is LayerScale where layer_scale=True, else the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import attention, mlp, projection
from refimpl.models.params import Params
from refimpl.models.run import Run, pick


class Cache(NamedTuple):
    norm1: ops.layer_norm.Cache
    attention: attention.Cache
    scale1: ops.layer_scale.Cache | None  # None without LayerScale
    norm2: ops.layer_norm.Cache
    mlp: mlp.Cache
    scale2: ops.layer_scale.Cache | None


def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C) -> y (B, N, C)."""
    eps, backend, tap = run.config.norm_eps, run.backend, run.tap
    n1, norm1_cache = backend.layer_norm.forward(x, **params["norm1"], eps=eps)
    if tap is not None:
        tap(f"{name}.norm1.out", n1, pick(_norm(params["norm1"], eps), 0), [source])
    attended, attention_cache = attention.forward(
        params["attn"], n1, run, name=f"{name}.attn", source=f"{name}.norm1.out"
    )
    branch, scale1_cache = _scale(params, "scale1", attended, run)
    mid = x + branch  # (B, N, C)
    n2, norm2_cache = backend.layer_norm.forward(mid, **params["norm2"], eps=eps)
    if tap is not None:
        tap(f"{name}.mid", mid, _add(params, "scale1"), [source, f"{name}.attn.proj.out"])
        tap(f"{name}.norm2.out", n2, pick(_norm(params["norm2"], eps), 0), [f"{name}.mid"])
    hidden, mlp_cache = mlp.forward(
        params["mlp"], n2, run, name=f"{name}.mlp", source=f"{name}.norm2.out"
    )
    branch, scale2_cache = _scale(params, "scale2", hidden, run)
    y = mid + branch
    if tap is not None:
        tap(f"{name}.out", y, _add(params, "scale2"), [f"{name}.mid", f"{name}.mlp.down.out"])
    return y, Cache(
        norm1_cache, attention_cache, scale1_cache, norm2_cache, mlp_cache, scale2_cache
    )


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dy (B, N, C) -> (dx (B, N, C), gradients of the parameters)."""
    config, backend, tap, _ = run
    grads: Params = {}
    # forward was y = mid + scale2(mlp(LayerNorm2(mid)))
    dbranch, scale2 = _scale_backward(dy, cache.scale2, run)
    if tap is not None:
        _tap_scale(params, "scale2", dbranch, scale2, run, name, "out", "mlp.down.out")
    dn2, grads["mlp"] = mlp.backward(
        dbranch, params["mlp"], cache.mlp, run, name=f"{name}.mlp", source=f"{name}.norm2.out"
    )
    dmid, *norm2 = backend.layer_norm.backward(dn2, cache.norm2)
    dmid += dy
    grads["norm2"] = {"weight": norm2[0], "bias": norm2[1]}
    if tap is not None:
        read = projection.reads(f"{name}.mlp.up")
        tap(f"grads/{name}.norm2.out", dn2, projection.input_gradient, read)
        _tap_norm(params, "norm2", dmid, grads, run, name, f"{name}.mid", f"grads/{name}.out")
    # forward was mid = x + scale1(attention(LayerNorm1(x)))
    dbranch, scale1 = _scale_backward(dmid, cache.scale1, run)
    if tap is not None:
        _tap_scale(params, "scale1", dbranch, scale1, run, name, "mid", "attn.proj.out")
    dn1, grads["attn"] = attention.backward(
        dbranch,
        params["attn"],
        cache.attention,
        run,
        name=f"{name}.attn",
        source=f"{name}.norm1.out",
    )
    dx, *norm1 = backend.layer_norm.backward(dn1, cache.norm1)
    dx += dmid
    grads["norm1"] = {"weight": norm1[0], "bias": norm1[1]}
    if tap is not None:
        read = attention.input_reads(f"{name}.attn", config)
        tap(f"grads/{name}.norm1.out", dn1, attention.input_gradient(run), read)
        _tap_norm(params, "norm1", dx, grads, run, name, source, f"grads/{name}.mid")
    if scale1 is not None:
        grads.update(scale1=scale1, scale2=scale2)
    return dx, grads


def _scale(params: Params, key: str, x: np.ndarray, run: Run):
    if key not in params:
        return x, None
    return run.backend.layer_scale.forward(x, **params[key])


def _scale_backward(dy: np.ndarray, cache: ops.layer_scale.Cache | None, run: Run):
    if cache is None:
        return dy, None
    dx, dalpha, dbeta = run.backend.layer_scale.backward(dy, cache)
    return dx, {"alpha": dalpha, "beta": dbeta}


def _norm(params: Params, eps: float):
    return lambda x: ops.layer_norm.forward(x, **params, eps=eps)


def _add(params: Params, key: str):
    """The op of a residual addition: stream + scale(branch)."""
    if key not in params:
        return lambda stream, branch: stream + branch
    return lambda stream, branch: stream + ops.layer_scale.forward(branch, **params[key])[0]


def _tap_norm(params, key, dx, grads, run: Run, name: str, source: str, residual: str) -> None:
    """Gradients of a norm's parameters, and of the stream: through the norm and around it."""
    norm = _norm(params[key], run.config.norm_eps)

    def gradients(dnorm, x):
        return ops.layer_norm.backward(dnorm, norm(x)[1])

    read = [f"grads/{name}.{key}.out", source]
    for i, leaf in enumerate(("weight", "bias")):
        run.tap(f"grads/param.{name}.{key}.{leaf}", grads[key][leaf], pick(gradients, i + 1), read)

    def stream_gradient(dnorm, x, dstream):
        return gradients(dnorm, x)[0] + dstream

    run.tap(f"grads/{source}", dx, stream_gradient, [*read, residual])


def _tap_scale(params, key, dbranch, grads, run: Run, name: str, stream: str, branch: str) -> None:
    """The gradient of a residual branch and of its LayerScale."""
    tap, dstream = run.tap, f"grads/{name}.{stream}"
    if grads is None:
        tap(f"grads/{name}.{branch}", dbranch, lambda dy: dy, [dstream])
        return

    def gradients(dy, x):
        return ops.layer_scale.backward(dy, ops.layer_scale.Cache(x, params[key]["alpha"]))

    for i, leaf in enumerate(("alpha", "beta")):
        op, read = pick(gradients, i + 1), [dstream, f"{name}.{branch}"]
        tap(f"grads/param.{name}.{key}.{leaf}", grads[leaf], op, read)
    tap(f"grads/{name}.{branch}", dbranch, pick(gradients, 0), read)
