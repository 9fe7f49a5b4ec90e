"""Binary attention, the two ideas of DIDB-ViT as switches on the baseline [SPEC 6.1, 6.2].

    m_t    = P_t(x)                 t in q, k, v; similarity="haar": q, k of each band of x, and v
    b_t    = sign(m_t + move_t)
    Att    = Boolean(softmax(scores(b)); alpha)
    o      = RPReLU(LayerNorm(Att b_v) + shortcuts of every q and k + value term)
    y      = P_proj(o)

The value term is m_v, or with attention="differential" lam_s m_v - lam_n neighbour_mean(m_v).
The additions run from left to right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import heads, projection, similarity
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.run import Run, dot, located, pick, signs


class Cache(NamedTuple):
    bands: ops.bands.Cache | None  # with similarity="haar"
    projections: dict[str, projection.Cache]  # by t
    heads: dict[str, heads.Cache]  # by t
    similarity: similarity.Cache
    softmax: ops.softmax.Cache
    context: ops.boolean_attention.Cache
    norm: ops.layer_norm.Cache
    neighbours: ops.neighbours.Cache | None  # with attention="differential"
    differential: ops.differential.Cache | None
    rprelu: ops.rprelu.Cache
    proj: projection.Cache


@located
def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C), the normalised tokens -> y (B, N, C)."""
    config, backend, _ = run
    inputs, bands_cache = _inputs(x, run, name, source)
    m, b, projection_caches, head_caches = {}, {}, {}, {}
    for t in config.attention_inputs:
        m[t], projection_caches[t] = projection.forward(
            params[t], inputs[t], run, name=f"{name}.{t}", source=_source(t, config, name, source)
        )  # (B, N, C)
        b[t], head_caches[t] = heads.forward(
            m[t], params[f"{t}_move"], run, name=f"{name}.{t}", values=t == "v"
        )
    scores, similarity_cache = similarity.forward(params, b, run, name=name)  # (B, heads, N, N)
    prob, softmax_cache = backend.softmax.forward(scores)
    context, context_cache = backend.boolean_attention.forward(
        prob, b["v"], params["alpha"], binarize=config.binarize
    )  # (B, heads, N, d)
    norm, norm_cache = backend.layer_norm.forward(
        heads.merge(context), **params["norm"], eps=config.norm_eps
    )  # (B, N, C)
    value_term, neighbours_cache, differential_cache = _value_term(params, m["v"], run, name)
    y = norm
    for t in config.attention_inputs[:-1]:
        y = y + m[t]
    out, rprelu_cache = backend.rprelu.forward(y + value_term, **params["rprelu"])
    if run.tap is not None:
        _tap_forward(params, prob, context, norm, out, run, name)
    y, proj_cache = projection.forward(
        params["proj"], out, run, name=f"{name}.proj", source=f"{name}.out"
    )
    return y, Cache(
        bands_cache,
        projection_caches,
        head_caches,
        similarity_cache,
        softmax_cache,
        context_cache,
        norm_cache,
        neighbours_cache,
        differential_cache,
        rprelu_cache,
        proj_cache,
    )


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dy (B, N, C) -> (dx (B, N, C), gradients of the parameters)."""
    config, backend, tap = run
    grads: Params = {}
    dout, grads["proj"] = projection.backward(
        dy, params["proj"], cache.proj, run, name=f"{name}.proj", source=f"{name}.out"
    )
    # forward was out = RPReLU(LayerNorm(context) + m_q + m_k + … + value term)
    dsum, *drprelu = backend.rprelu.backward(dout, cache.rprelu)
    grads["rprelu"] = dict(zip(params["rprelu"], drprelu, strict=False))
    dm = dict.fromkeys(config.attention_inputs, dsum)
    dm["v"], dmean = _value_term_backward(dsum, grads, cache, run)
    dmerged, dnorm_weight, dnorm_bias = backend.layer_norm.backward(dsum, cache.norm)
    grads["norm"] = {"weight": dnorm_weight, "bias": dnorm_bias}
    dcontext = heads.split(dmerged, config.heads)
    # forward was context = Boolean(softmax(scores); alpha) b_v
    dprob, dvalue, grads["alpha"] = backend.boolean_attention.backward(dcontext, cache.context)
    (dscores,) = backend.softmax.backward(dprob, cache.softmax)
    if tap is not None:
        _tap_backward(params, dout, dsum, dmean, dcontext, dprob, dvalue, dscores, grads, run, name)
    db, band_grads = similarity.backward(dscores, params, cache.similarity, run, name=name)
    grads.update(band_grads)
    dinputs = {}
    for t, db_t in (db | {"v": dvalue}).items():
        # m_t has two uses: its heads and its shortcut (v also the neighbours)
        dm_heads, grads[f"{t}_move"] = heads.backward(
            db_t, cache.heads[t], run, name=f"{name}.{t}", values=t == "v"
        )
        dm[t] = dm[t] + dm_heads
        if tap is not None:
            _tap_shortcut(params, dm[t], t, run, name)
        dinputs[t], grads[t] = projection.backward(
            dm[t],
            params[t],
            cache.projections[t],
            run,
            name=f"{name}.{t}",
            source=_source(t, config, name, source),
        )
    return _inputs_backward(dinputs, cache, run, name), grads


def _source(t: str, config: Config, name: str, source: str) -> str:
    """Name of the tap that projection t reads."""
    if config.similarity == "haar" and t != "v":
        return f"{name}.low" if t.endswith("_low") else f"{name}.high"
    return source


def _inputs(
    x: np.ndarray, run: Run, name: str, source: str
) -> tuple[dict[str, np.ndarray], ops.bands.Cache | None]:
    """What each projection reads: x itself, or for queries and keys one of its bands."""
    config, backend, tap = run
    if config.similarity == "plain":
        return dict.fromkeys(config.attention_inputs, x), None
    options = (config.grid, config.haar_mode, config.haar_cls)
    (low, high), cache = backend.bands.forward(x, *options)
    if tap is not None:
        tap(f"{name}.low", low, lambda x: ops.bands.forward(x, *options)[0][0], [source])
        tap(f"{name}.high", high, lambda x: ops.bands.forward(x, *options)[0][1], [source])
    return {"q_low": low, "k_low": low, "q_high": high, "k_high": high, "v": x}, cache


def _inputs_backward(
    dinputs: dict[str, np.ndarray], cache: Cache, run: Run, name: str
) -> np.ndarray:
    if cache.bands is None:
        return (dinputs["q"] + dinputs["k"]) + dinputs["v"]
    dlow = dinputs["q_low"] + dinputs["k_low"]
    dhigh = dinputs["q_high"] + dinputs["k_high"]
    if run.tap is not None:
        for band, dband in (("low", dlow), ("high", dhigh)):
            read = [r for t in "qk" for r in projection.reads(f"{name}.{t}_{band}")]
            run.tap(f"grads/{name}.{band}", dband, _sum_of_inputs, read)
    (dx,) = run.backend.bands.backward((dlow, dhigh), cache.bands)
    return dx + dinputs["v"]


def input_reads(name: str, config: Config) -> list[str]:
    """Taps from which the gradient of attention's input follows; see `input_gradient`."""
    if config.similarity == "haar":
        return [f"grads/{name}.low", f"grads/{name}.high", *projection.reads(f"{name}.v")]
    return [r for t in "qkv" for r in projection.reads(f"{name}.{t}")]


def input_gradient(config: Config):
    """The op that computes the gradient of attention's input from `input_reads`."""
    if config.similarity == "plain":
        return _sum_of_inputs
    bands_cache = ops.bands.Cache(config.grid, config.haar_mode, config.haar_cls)

    def from_bands(dlow, dhigh, dz, dnorm):
        (dx,) = ops.bands.backward((dlow, dhigh), bands_cache)
        return dx + projection.input_gradient(dz, dnorm)

    return from_bands


def _sum_of_inputs(*gradients: np.ndarray) -> np.ndarray:
    """Sum over projections of what each adds to the gradient of the input they share."""
    dz, dnorm = gradients[0::2], gradients[1::2]
    total = projection.input_gradient(dz[0], dnorm[0])
    for i in range(1, len(dz)):
        total = total + projection.input_gradient(dz[i], dnorm[i])
    return total


def _value_term(params: Params, m_v: np.ndarray, run: Run, name: str):
    """m_v (B, N, C) -> (value term (B, N, C), cache of neighbours, cache of differential)."""
    config, backend, tap = run
    if config.attention == "plain":
        return m_v, None, None
    mean, neighbours_cache = backend.neighbours.forward(m_v, config.grid, config.neighbours)
    if tap is not None:
        op = lambda v: ops.neighbours.forward(v, config.grid, config.neighbours)[0]  # noqa: E731
        tap(f"{name}.neighbour_mean", mean, op, [f"{name}.v.out"])
    term, cache = backend.differential.forward(m_v, mean, params["shortcut"], params["neighbour"])
    return term, neighbours_cache, cache


def _value_term_backward(
    dsum: np.ndarray, grads: Params, cache: Cache, run: Run
) -> tuple[np.ndarray, np.ndarray | None]:
    """dsum (B, N, C) -> (dm_v through the value term, gradient of the neighbour mean)."""
    if cache.differential is None:
        return dsum, None
    dvalue, dmean, grads["shortcut"], grads["neighbour"] = run.backend.differential.backward(
        dsum, cache.differential
    )
    (dneighbours,) = run.backend.neighbours.backward(dmean, cache.neighbours)
    return dvalue + dneighbours, dmean


def _out_reads(config: Config, name: str) -> list[str]:
    """Taps that make attention's sum: the norm, every shortcut, the neighbour mean."""
    read = [f"{name}.norm.out", *(f"{name}.{t}.out" for t in config.attention_inputs)]
    return read + [f"{name}.neighbour_mean"] * (config.attention == "differential")


def _activate(params: Params, config: Config, *values: np.ndarray):
    """RPReLU and its cache from the values of `_out_reads`."""
    y, *m = values[: 1 + len(config.attention_inputs)]
    *shortcuts, value_term = m
    if config.attention == "differential":
        value_term, _ = ops.differential.forward(
            value_term, values[-1], params["shortcut"], params["neighbour"]
        )
    for shortcut in shortcuts:
        y = y + shortcut
    return ops.rprelu.forward(y + value_term, **params["rprelu"])


def _normalise(params: Params, config: Config, context: np.ndarray):
    return ops.layer_norm.forward(heads.merge(context), **params["norm"], eps=config.norm_eps)


def _tap_forward(params: Params, prob, context, norm, out, run: Run, name: str) -> None:
    config, _, tap = run
    alpha = params["alpha"]
    value = heads.binary_name(f"{name}.v", config)
    softmax = lambda scores: ops.softmax.forward(scores)[0]  # noqa: E731
    if config.binarize == "none":
        tap(f"{name}.prob", prob, softmax, [f"{name}.scores"])
        product = lambda prob, value: ops.matmul.forward(prob, value)[0]  # noqa: E731
        tap(f"{name}.context", context, product, [f"{name}.prob", value])
    else:
        ratio, step = ops.boolean.threshold(prob, alpha)
        op = lambda scores: ops.boolean.threshold(softmax(scores), alpha)[0]  # noqa: E731
        tap(f"{name}.prob.z", ratio, op, [f"{name}.scores"])
        tap(f"{name}.prob.bit", ratio > 0.5, lambda q: q > 0.5, [f"{name}.prob.z"])
        integers = np.rint(context / step).astype(np.int32)
        op = lambda bit, value: dot(bit, signs(value, np.int32))  # noqa: E731
        tap(f"{name}.context.int", integers, op, [f"{name}.prob.bit", value])
        op = lambda integers: integers.astype(step.dtype) * step  # noqa: E731
        tap(f"{name}.context", context, op, [f"{name}.context.int"])
    op = lambda context: _normalise(params, config, context)[0]  # noqa: E731
    tap(f"{name}.norm.out", norm, op, [f"{name}.context"])
    op = lambda *values: _activate(params, config, *values)[0]  # noqa: E731
    tap(f"{name}.out", out, op, _out_reads(config, name))


def _tap_backward(
    params, dout, dsum, dmean, dcontext, dprob, dvalue, dscores, grads: Params, run: Run, name: str
) -> None:
    config, _, tap = run
    tap(f"grads/{name}.out", dout, projection.input_gradient, projection.reads(f"{name}.proj"))

    def activation(dout, *values):
        return ops.rprelu.backward(dout, _activate(params, config, *values)[1])

    read = [f"grads/{name}.out", *_out_reads(config, name)]
    for i, key in enumerate(params["rprelu"]):
        tap(
            f"grads/param.{name}.rprelu.{key}",
            grads["rprelu"][key],
            pick(activation, i + 1),
            read,
        )
    tap(f"grads/{name}.norm.out", dsum, pick(activation, 0), read)
    _tap_value_term_backward(params, dmean, grads, run, name)

    def normalisation(dnorm, context):
        return ops.layer_norm.backward(dnorm, _normalise(params, config, context)[1])

    read = [f"grads/{name}.norm.out", f"{name}.context"]
    for i, key in enumerate(("weight", "bias")):
        op = pick(normalisation, i + 1)
        tap(f"grads/param.{name}.norm.{key}", grads["norm"][key], op, read)
    op = lambda *inputs: heads.split(normalisation(*inputs)[0], config.heads)  # noqa: E731
    tap(f"grads/{name}.context", dcontext, op, read)
    _tap_context_backward(params, dprob, dvalue, dscores, grads["alpha"], run, name)


def _tap_value_term_backward(params: Params, dmean, grads: Params, run: Run, name: str) -> None:
    if dmean is None:
        return
    tap, dsum_name = run.tap, f"grads/{name}.norm.out"
    op = lambda dsum: -params["neighbour"] * dsum  # noqa: E731
    tap(f"grads/{name}.neighbour_mean", dmean, op, [dsum_name])
    op = lambda dsum, value: (dsum * value).sum(axis=(0, 1))  # noqa: E731
    tap(f"grads/param.{name}.shortcut", grads["shortcut"], op, [dsum_name, f"{name}.v.out"])
    op = lambda dsum, mean: -(dsum * mean).sum(axis=(0, 1))  # noqa: E731
    read = [dsum_name, f"{name}.neighbour_mean"]
    tap(f"grads/param.{name}.neighbour", grads["neighbour"], op, read)


def _tap_context_backward(params, dprob, dvalue, dscores, dalpha, run: Run, name: str) -> None:
    config, _, tap = run
    alpha = params["alpha"]
    step = np.maximum(alpha, alpha.dtype.type(ops.boolean.ALPHA_MIN))
    value = heads.binary_name(f"{name}.v", config)
    prob = f"{name}.prob" if config.binarize == "none" else f"{name}.prob.z"

    def gradients(dcontext, prob, value):
        return ops.boolean_attention.backward(dcontext, _context_cache(prob, value))

    def _context_cache(prob, value):
        if config.binarize == "none":
            return ops.boolean_attention.Cache(None, ops.matmul.Cache(prob, value), alpha)
        bit = prob > 0.5
        matmul_cache = ops.matmul.Cache(step * bit, signs(value, alpha.dtype))
        return ops.boolean_attention.Cache(ops.boolean.Cache(prob, bit, alpha), matmul_cache, alpha)

    read = [f"grads/{name}.context", prob, value]
    tap(f"grads/{name}.prob", dprob, pick(gradients, 0), read)
    tap(f"grads/{value}", dvalue, pick(gradients, 1), read)
    tap(f"grads/param.{name}.alpha", dalpha, pick(gradients, 2), read)
    softmax = lambda prob: ops.softmax.Cache(prob * (1 if config.binarize == "none" else step))  # noqa: E731
    op = lambda dprob, prob: ops.softmax.backward(dprob, softmax(prob))[0]  # noqa: E731
    tap(f"grads/{name}.scores", dscores, op, [f"grads/{name}.prob", prob])


def _tap_shortcut(params: Params, dm: np.ndarray, t: str, run: Run, name: str) -> None:
    """The gradient of m_t: through its heads, and through the sum in front of RPReLU."""
    config, _, tap = run
    read = [f"grads/{name}.{t}.head_z", f"grads/{name}.norm.out"]
    if t != "v":
        tap(f"grads/{name}.{t}.out", dm, lambda dz, dsum: dsum + heads.merge(dz), read)
    elif config.attention == "plain":
        tap(f"grads/{name}.v.out", dm, lambda dz, dsum: dsum + heads.merge_values(dz), read)
    else:

        def dvalue(dz, dsum, dmean):
            _, cache = ops.neighbours.forward(np.zeros_like(dsum), config.grid, config.neighbours)
            (dneighbours,) = ops.neighbours.backward(dmean, cache)
            return (params["shortcut"] * dsum + dneighbours) + heads.merge_values(dz)

        tap(f"grads/{name}.v.out", dm, dvalue, [*read, f"grads/{name}.neighbour_mean"])
