"""The real block of `deit` and `swin`: pre-norm attention and MLP [SPEC 6.3, 6.7].

mid = x   + proj(softmax(q k^T / sqrt(d)) v)        q, k, v = qkv(LayerNorm1(x))
y   = mid + fc2(gelu(fc1(LayerNorm2(mid))))

As in `transformers` and `timm`. With windows attention is inside each, with its position bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import heads, similarity
from refimpl.models.params import Params
from refimpl.models.run import Run, located, pick
from refimpl.models.stage import Stage


class Cache(NamedTuple):
    norm1: ops.layer_norm.Cache
    qkv: ops.linear.Cache
    scores: ops.matmul.Cache
    position_bias: ops.position_bias.Cache | None  # with windows
    softmax: ops.softmax.Cache
    context: ops.matmul.Cache
    proj: ops.linear.Cache
    norm2: ops.layer_norm.Cache
    fc1: ops.linear.Cache
    gelu: ops.gelu.Cache
    fc2: ops.linear.Cache


@located
def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C) -> y (B, N, C)."""
    config, backend, _, stage = run
    attn, mlp, eps = params["attn"], params["mlp"], config.norm_eps
    n1, norm1_cache = backend.layer_norm.forward(x, **params["norm1"], eps=eps)
    qkv, qkv_cache = backend.linear.forward(n1, **attn["qkv"])  # (B, N, 3C)
    q, k, v = _split_qkv(qkv, stage)
    products, scores_cache = backend.matmul.forward(q, k)
    scores, position_bias_cache = products / math.sqrt(config.head_dim), None
    if stage.window:
        scores, position_bias_cache = backend.position_bias.forward(scores, attn["position_bias"])
    prob, softmax_cache = backend.softmax.forward(scores, heads.mask(stage, len(scores)))
    context, context_cache = backend.matmul.forward(prob, v)  # (B nW, heads, M M, d)
    attended, proj_cache = backend.linear.forward(heads.join(context, stage), **attn["proj"])
    mid = x + attended
    n2, norm2_cache = backend.layer_norm.forward(mid, **params["norm2"], eps=eps)
    fc1, fc1_cache = backend.linear.forward(n2, **mlp["fc1"])  # (B, N, rC)
    gelu, gelu_cache = backend.gelu.forward(fc1)
    fc2, fc2_cache = backend.linear.forward(gelu, **mlp["fc2"])
    y = mid + fc2
    if run.tap is not None:
        values = (n1, qkv, scores, prob, context, attended, mid, n2, fc1, gelu, fc2, y)
        _tap_forward(params, values, run, name, source)
    return y, Cache(
        norm1_cache,
        qkv_cache,
        scores_cache,
        position_bias_cache,
        softmax_cache,
        context_cache,
        proj_cache,
        norm2_cache,
        fc1_cache,
        gelu_cache,
        fc2_cache,
    )


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dy (B, N, C) -> (dx (B, N, C), gradients of the parameters)."""
    config, backend, _, stage = run
    # forward was y = mid + fc2(gelu(fc1(LayerNorm2(mid))))
    dgelu, *fc2 = backend.linear.backward(dy, cache.fc2)
    (dfc1,) = backend.gelu.backward(dgelu, cache.gelu)
    dn2, *fc1 = backend.linear.backward(dfc1, cache.fc1)
    dmid, *norm2 = backend.layer_norm.backward(dn2, cache.norm2)
    dmid += dy
    # forward was mid = x + proj(merge(softmax(scores) v))
    dmerged, *proj = backend.linear.backward(dmid, cache.proj)
    dcontext = heads.cut(dmerged, stage)
    dprob, dv = backend.matmul.backward(dcontext, cache.context)
    (dscores,) = backend.softmax.backward(dprob, cache.softmax)
    dtable = None
    if stage.window:
        dscores, dtable = backend.position_bias.backward(dscores, cache.position_bias)
    dq, dk = backend.matmul.backward(dscores / math.sqrt(config.head_dim), cache.scores)
    dqkv = _merge_qkv(dq, dk, dv, stage)
    dn1, *qkv = backend.linear.backward(dqkv, cache.qkv)
    dx, *norm1 = backend.layer_norm.backward(dn1, cache.norm1)
    dx += dmid
    grads = {
        "norm1": _affine(norm1),
        "attn": {"qkv": _affine(qkv), "proj": _affine(proj)},
        "norm2": _affine(norm2),
        "mlp": {"fc1": _affine(fc1), "fc2": _affine(fc2)},
    }
    if stage.window:
        grads["attn"]["position_bias"] = dtable
    if run.tap is not None:
        values = (dy, dgelu, dfc1, dn2, dmid, dcontext, dprob, dscores, dqkv, dn1, dx)
        _tap_backward(params, values, grads, run, name, source)
    return dx, grads


def _split_qkv(qkv: np.ndarray, stage: Stage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, N, 3C), rows q, k, v -> q, k (B nW, heads, M M, d), v (B nW, heads, d, M M)."""
    q, k, v = np.split(qkv, 3, axis=-1)
    return heads.cut(q, stage), heads.cut(k, stage), heads.cut_values(v, stage)


def _merge_qkv(dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, stage: Stage) -> np.ndarray:
    parts = [heads.join(dq, stage), heads.join(dk, stage), heads.join_values(dv, stage)]
    return np.concatenate(parts, axis=-1)


def _affine(gradients: list[np.ndarray]) -> Params:
    return {"weight": gradients[0], "bias": gradients[1]}


def _tap_forward(params: Params, values: tuple, run: Run, name: str, source: str) -> None:
    config, eps, stage = run.config, run.config.norm_eps, run.stage
    n1, qkv, scores, prob, context, attended, mid, n2, fc1, gelu, fc2, y = values

    def tap(key: str, value: np.ndarray, op: Callable, *inputs: str) -> None:
        run.tap(f"{name}.{key}", value, op, [source if i == "x" else f"{name}.{i}" for i in inputs])

    def score(qkv):
        q, k, _ = _split_qkv(qkv, stage)
        scores = ops.matmul.forward(q, k)[0] / math.sqrt(config.head_dim)
        if stage.window:
            scores, _ = ops.position_bias.forward(scores, attn["position_bias"])
        return scores

    def softmax(scores):
        return ops.softmax.forward(scores, heads.mask(stage, scores.shape[0]))[0]

    def attend(prob, qkv):
        return ops.matmul.forward(prob, _split_qkv(qkv, stage)[2])[0]

    attn, mlp = params["attn"], params["mlp"]
    tap("norm1.out", n1, pick(_norm(params["norm1"], eps), 0), "x")
    tap("attn.qkv.out", qkv, pick(_linear(attn["qkv"]), 0), "norm1.out")
    tap("attn.scores", scores, score, "attn.qkv.out")
    tap("attn.prob", prob, softmax, "attn.scores")
    tap("attn.context", context, attend, "attn.prob", "attn.qkv.out")
    proj = _linear(attn["proj"])
    tap("attn.proj.out", attended, lambda c: proj(heads.join(c, stage))[0], "attn.context")
    tap("mid", mid, np.add, "x", "attn.proj.out")
    tap("norm2.out", n2, pick(_norm(params["norm2"], eps), 0), "mid")
    tap("mlp.fc1.out", fc1, pick(_linear(mlp["fc1"]), 0), "norm2.out")
    tap("mlp.gelu.out", gelu, pick(ops.gelu.forward, 0), "mlp.fc1.out")
    tap("mlp.fc2.out", fc2, pick(_linear(mlp["fc2"]), 0), "mlp.gelu.out")
    tap("out", y, np.add, "mid", "mlp.fc2.out")


def _tap_backward(params, values: tuple, grads, run: Run, name: str, source: str) -> None:
    (config, _, tap, stage), eps = run, run.config.norm_eps
    dy, dgelu, dfc1, dn2, dmid, dcontext, dprob, dscores, dqkv, dn1, dx = values
    attn, mlp, g = params["attn"], params["mlp"], f"grads/{name}"

    def tap_affine(key: str, leaves: Params, gradients: Callable, read: list[str]) -> None:
        for i, leaf in enumerate(("weight", "bias")):
            tap(f"grads/param.{name}.{key}.{leaf}", leaves[leaf], pick(gradients, i + 1), read)

    def of_context(dcontext, prob, qkv):
        return ops.matmul.backward(dcontext, ops.matmul.Cache(prob, split(qkv)[2]))

    def of_qkv(dscores, dcontext, prob, qkv):
        q, k, _ = split(qkv)
        dproducts = dscores / math.sqrt(config.head_dim)
        dq, dk = ops.matmul.backward(dproducts, ops.matmul.Cache(q, k))
        return _merge_qkv(dq, dk, of_context(dcontext, prob, qkv)[1], stage)

    def split(qkv):
        return _split_qkv(qkv, stage)

    def of_proj(dy, context):
        dmerged, *rest = _linear_backward(attn["proj"])(dy, heads.join(context, stage))
        return heads.cut(dmerged, stage), *rest

    def of_softmax(dprob, prob):
        return ops.softmax.backward(dprob, ops.softmax.Cache(prob))

    def of_gelu(dgelu, fc1):
        return ops.gelu.backward(dgelu, ops.gelu.forward(fc1)[1])

    fc2, fc1 = _linear_backward(mlp["fc2"]), _linear_backward(mlp["fc1"])
    norm1, norm2 = _norm_backward(params["norm1"], eps), _norm_backward(params["norm2"], eps)
    qkv = _linear_backward(attn["qkv"])

    tap(f"{g}.mlp.fc2.out", dy, np.array, [f"{g}.out"])  # a branch has its stream's gradient
    read = [f"{g}.mlp.fc2.out", f"{name}.mlp.gelu.out"]
    tap_affine("mlp.fc2", grads["mlp"]["fc2"], fc2, read)
    tap(f"{g}.mlp.gelu.out", dgelu, pick(fc2, 0), read)
    tap(f"{g}.mlp.fc1.out", dfc1, pick(of_gelu, 0), [f"{g}.mlp.gelu.out", f"{name}.mlp.fc1.out"])
    read = [f"{g}.mlp.fc1.out", f"{name}.norm2.out"]
    tap_affine("mlp.fc1", grads["mlp"]["fc1"], fc1, read)
    tap(f"{g}.norm2.out", dn2, pick(fc1, 0), read)
    read = [f"{g}.norm2.out", f"{name}.mid"]
    tap_affine("norm2", grads["norm2"], norm2, read)
    tap(f"{g}.mid", dmid, lambda dn2, mid, dy: norm2(dn2, mid)[0] + dy, [*read, f"{g}.out"])
    tap(f"{g}.attn.proj.out", dmid, np.array, [f"{g}.mid"])
    read = [f"{g}.attn.proj.out", f"{name}.attn.context"]
    tap_affine("attn.proj", grads["attn"]["proj"], of_proj, read)
    tap(f"{g}.attn.context", dcontext, pick(of_proj, 0), read)
    read = [f"{g}.attn.context", f"{name}.attn.prob", f"{name}.attn.qkv.out"]
    tap(f"{g}.attn.prob", dprob, pick(of_context, 0), read)
    tap(f"{g}.attn.scores", dscores, pick(of_softmax, 0), [f"{g}.attn.prob", read[1]])
    if stage.window:
        similarity.tap_position_bias(grads["attn"]["position_bias"], run, name=f"{name}.attn")
    tap(f"{g}.attn.qkv.out", dqkv, of_qkv, [f"{g}.attn.scores", *read])
    read = [f"{g}.attn.qkv.out", f"{name}.norm1.out"]
    tap_affine("attn.qkv", grads["attn"]["qkv"], qkv, read)
    tap(f"{g}.norm1.out", dn1, pick(qkv, 0), read)
    read = [f"{g}.norm1.out", source]
    tap_affine("norm1", grads["norm1"], norm1, read)

    def stream_gradient(dn1, x, dmid):
        return norm1(dn1, x)[0] + dmid

    tap(f"grads/{source}", dx, stream_gradient, [*read, f"{g}.mid"])


def _linear(params: Params) -> Callable:
    return lambda x: ops.linear.forward(x, **params)


def _linear_backward(params: Params) -> Callable:
    return lambda dy, x: ops.linear.backward(dy, ops.linear.Cache(x, params["weight"], True))


def _norm(params: Params, eps: float) -> Callable:
    return lambda x: ops.layer_norm.forward(x, **params, eps=eps)


def _norm_backward(params: Params, eps: float) -> Callable:
    norm = _norm(params, eps)
    return lambda dy, x: ops.layer_norm.backward(dy, norm(x)[1])
