"""Binary attention, the ideas of DIDB-ViT as switches on the baseline [SPEC 6.1, 6.2].

m_t     = P_t(x)                 t in q, k, v; similarity="haar": q, k of each band of x, and v
b_t     = sign(m_t + move_t)                                              heads.py
scores  = b_q b_k^T / sqrt(d), or a learned sum over the bands            similarity.py
          with windows: inside each, plus its position bias [SPEC 6.7]
context = Boolean(softmax(scores); alpha) b_v                             context.py
o       = RPReLU(LayerNorm(context) + shortcuts + value term)             attention_output.py
y       = P_proj(o)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import attention_output, context, heads, projection, similarity
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.run import Run, located


class Cache(NamedTuple):
    bands: ops.bands.Cache | None  # with similarity="haar"
    projections: dict[str, projection.Cache]  # by t
    heads: dict[str, heads.Cache]  # by t
    similarity: similarity.Cache
    context: context.Cache
    output: attention_output.Cache
    proj: projection.Cache


@located
def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C), the normalised tokens -> y (B, N, C)."""
    inputs, bands_cache = _inputs(x, run, name, source)
    m, b, projection_caches, head_caches = {}, {}, {}, {}
    for t in run.config.attention_inputs:
        t_name, t_source = f"{name}.{t}", _source(t, run.config, name, source)
        m[t], projection_caches[t] = projection.forward(
            params[t], inputs[t], run, name=t_name, source=t_source
        )  # (B, N, C)
        b[t], head_caches[t] = heads.forward(
            m[t], params[f"{t}_move"], run, name=t_name, values=t == "v"
        )
    scores, similarity_cache = similarity.forward(params, b, run, name=name)  # (B, heads, N, N)
    attended, context_cache = context.forward(params["alpha"], scores, b["v"], run, name=name)
    out, output_cache = attention_output.forward(params, attended, m, run, name=name)
    y, proj_cache = projection.forward(
        params["proj"], out, run, name=f"{name}.proj", source=f"{name}.out"
    )
    return y, Cache(
        bands_cache,
        projection_caches,
        head_caches,
        similarity_cache,
        context_cache,
        output_cache,
        proj_cache,
    )


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dy (B, N, C) -> (dx (B, N, C), gradients of the parameters)."""
    config = run.config
    dout, dproj = projection.backward(
        dy, params["proj"], cache.proj, run, name=f"{name}.proj", source=f"{name}.out"
    )
    dcontext, dshortcut, dvalue_term, grads = attention_output.backward(
        dout, params, cache.output, run, name=name
    )
    dscores, dvalue, grads["alpha"] = context.backward(
        dcontext, params["alpha"], cache.context, run, name=name
    )
    db, band_grads = similarity.backward(dscores, params, cache.similarity, run, name=name)
    grads |= {"proj": dproj, **band_grads}
    db["v"] = dvalue
    dinputs = {}
    for t in config.attention_inputs:
        t_name, t_source = f"{name}.{t}", _source(t, config, name, source)
        # m_t was used twice: by its heads, and as a shortcut
        dm_heads, grads[f"{t}_move"] = heads.backward(
            db[t], cache.heads[t], run, name=t_name, values=t == "v"
        )
        dm = (dvalue_term if t == "v" else dshortcut) + dm_heads
        if run.tap is not None:
            attention_output.tap_shortcut(params, dm, t, run, name=name)
        dinputs[t], grads[t] = projection.backward(
            dm, params[t], cache.projections[t], run, name=t_name, source=t_source
        )
    return _inputs_backward(dinputs, cache, run, name), grads


def input_reads(name: str, config: Config) -> list[str]:
    """Taps from which the gradient of attention's input follows; see `input_gradient`."""
    if config.similarity == "haar":
        return [f"grads/{name}.low", f"grads/{name}.high", *projection.reads(f"{name}.v")]
    return [r for t in config.attention_inputs for r in projection.reads(f"{name}.{t}")]


def input_gradient(run: Run) -> Callable[..., np.ndarray]:
    """The op that computes the gradient of attention's input from `input_reads`."""
    config = run.config
    if config.similarity == "plain":
        return _sum_of_inputs
    bands_cache = ops.bands.Cache(run.stage.grid, config.haar_mode, config.haar_cls)

    def from_bands(dlow, dhigh, dz, dnorm):
        (dx,) = ops.bands.backward((dlow, dhigh), bands_cache)
        return dx + projection.input_gradient(dz, dnorm)

    return from_bands


def _source(t: str, config: Config, name: str, source: str) -> str:
    """Name of the tap that projection t reads."""
    if config.similarity == "haar" and t != "v":
        return f"{name}.low" if t.endswith("_low") else f"{name}.high"
    return source


def _inputs(
    x: np.ndarray, run: Run, name: str, source: str
) -> tuple[dict[str, np.ndarray], ops.bands.Cache | None]:
    """What each projection reads: x itself, or for queries and keys one of its bands."""
    config, backend, tap, stage = run
    if config.similarity == "plain":
        return dict.fromkeys(config.attention_inputs, x), None
    options = (stage.grid, config.haar_mode, config.haar_cls)
    (low, high), cache = backend.bands.forward(x, *options)
    if tap is not None:
        tap(f"{name}.low", low, lambda x: ops.bands.forward(x, *options)[0][0], [source])
        tap(f"{name}.high", high, lambda x: ops.bands.forward(x, *options)[0][1], [source])
    return {"q_low": low, "k_low": low, "q_high": high, "k_high": high, "v": x}, cache


def _inputs_backward(
    dinputs: dict[str, np.ndarray], cache: Cache, run: Run, name: str
) -> np.ndarray:
    """Gradients of what the projections read -> dx."""
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


def _sum_of_inputs(*gradients: np.ndarray) -> np.ndarray:
    """Sum over projections of what each adds to the gradient of the input they share."""
    first, *others = [
        projection.input_gradient(dz, dnorm)
        for dz, dnorm in zip(gradients[0::2], gradients[1::2], strict=True)
    ]
    for other in others:
        first = first + other
    return first
