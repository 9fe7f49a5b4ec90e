"""Scores of binary queries and keys, plain or as a sum over Haar bands [SPEC 6.1, 6.2].

plain    scores = b_q b_k^T / sqrt(d)
haar     scores = (w_low b_q_low b_k_low^T + w_high b_q_high b_k_high^T) / sqrt(d)

With windows their position bias comes last [SPEC 6.7].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import heads
from refimpl.models.params import Params
from refimpl.models.run import Run, dot, signs


class Cache(NamedTuple):
    products: list[ops.matmul.Cache]  # one a band
    band_sum: ops.band_sum.Cache | None  # None where plain
    position_bias: ops.position_bias.Cache | None  # with windows


def forward(
    params: Params, b: dict[str, np.ndarray], run: Run, *, name: str
) -> tuple[np.ndarray, Cache]:
    """b: t -> (B nW, heads, M M, d) for queries and keys -> scores (B nW, heads, M M, M M)."""
    config, backend, tap, _ = run
    results = [backend.matmul.forward(b[f"q{band}"], b[f"k{band}"]) for band in config.bands]
    products, product_caches = map(list, zip(*results, strict=True))  # whole numbers
    if config.similarity == "haar":
        scores, band_sum_cache = backend.band_sum.forward(
            *products, params["band_weight"], config.head_dim
        )
    else:
        scores, band_sum_cache = products[0] / math.sqrt(config.head_dim), None
    position_bias_cache = None
    if "position_bias" in params:
        scores, position_bias_cache = backend.position_bias.forward(scores, params["position_bias"])
    if tap is not None:
        _tap_forward(params, products, scores, run, name)
    return scores, Cache(product_caches, band_sum_cache, position_bias_cache)


def backward(
    dscores: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str
) -> tuple[dict[str, np.ndarray], Params]:
    """dscores (B nW, heads, M M, M M) -> (t -> db (B nW, heads, M M, d), the parameters')."""
    config, backend, tap, _ = run
    grads: Params = {}
    if cache.position_bias is not None:
        # forward was scores = … + bias
        dscores, grads["position_bias"] = backend.position_bias.backward(
            dscores, cache.position_bias
        )
    if cache.band_sum is None:
        dproducts = [dscores / math.sqrt(config.head_dim)]
    else:
        *dproducts, dband_weight = backend.band_sum.backward(dscores, cache.band_sum)
        fixed = config.band_weights == "fixed"
        grads["band_weight"] = np.zeros_like(dband_weight) if fixed else dband_weight
    db = {}
    for band, dproduct, product in zip(config.bands, dproducts, cache.products, strict=True):
        db[f"q{band}"], db[f"k{band}"] = backend.matmul.backward(dproduct, product)
    if tap is not None:
        _tap_backward(params, db, grads, run, name)
    return db, grads


def _combine(params: Params, run: Run, *products: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scores without the position bias, and the band sum's cache, in the params' dtype."""
    config = run.config
    products = [product.astype(params["alpha"].dtype) for product in products]
    if config.similarity == "haar":
        return ops.band_sum.forward(*products, params["band_weight"], config.head_dim)
    return products[0] / math.sqrt(config.head_dim), None


def _tap_forward(params: Params, products, scores, run: Run, name: str) -> None:
    config, _, tap, _ = run

    def combine(*products):
        scores = _combine(params, run, *products)[0]
        if "position_bias" in params:
            scores, _ = ops.position_bias.forward(scores, params["position_bias"])
        return scores

    pairs = [(f"{name}.q{band}", f"{name}.k{band}") for band in config.bands]
    if config.binarize == "none":

        def from_heads(*queries_and_keys):
            q, k = queries_and_keys[0::2], queries_and_keys[1::2]
            return combine(*(ops.matmul.forward(*pair)[0] for pair in zip(q, k)))

        read = [heads.binary_name(t, config) for pair in pairs for t in pair]
        tap(f"{name}.scores", scores, from_heads, read)
        return

    def integers(q_bit, k_bit):
        return dot(signs(q_bit, np.int32), signs(k_bit, np.int32))

    names = [f"{name}.scores{band}.int" for band in config.bands]
    for tap_name, product, pair in zip(names, products, pairs, strict=True):
        read = [heads.binary_name(t, config) for t in pair]
        tap(tap_name, product.astype(np.int32), integers, read)
    tap(f"{name}.scores", scores, combine, names)


def _tap_backward(params: Params, db, grads: Params, run: Run, name: str) -> None:
    config, _, tap, _ = run
    dtype = params["alpha"].dtype
    as_factor = (lambda x: x) if config.binarize == "none" else (lambda bit: signs(bit, dtype))
    factors = [1.0] if config.similarity == "plain" else params["band_weight"][:, :, None, None]

    for band, factor in zip(config.bands, factors, strict=True):
        q, k = f"{name}.q{band}", f"{name}.k{band}"

        def dquery(dscores, key, factor=factor):
            return factor * (dscores / math.sqrt(config.head_dim)) @ as_factor(key)

        def dkey(dscores, query, factor=factor):
            dproduct = factor * (dscores / math.sqrt(config.head_dim))
            return dproduct.swapaxes(-1, -2) @ as_factor(query)

        for here, other, op in ((q, k, dquery), (k, q, dkey)):
            t = here.rsplit(".", 1)[-1]
            read = [f"grads/{name}.scores", heads.binary_name(other, config)]
            tap(f"grads/{heads.binary_name(here, config)}", db[t], op, read)
    if "position_bias" in grads:
        tap_position_bias(grads["position_bias"], run, name=name)
    if "band_weight" in grads:
        _tap_band_weight(params, grads["band_weight"], run, name)


def tap_position_bias(dtable: np.ndarray, run: Run, *, name: str) -> None:
    """The gradient of the position bias's table."""
    cache = ops.position_bias.Cache(run.stage.window)

    def table_gradient(dscores):
        return ops.position_bias.backward(dscores, cache)[1]

    run.tap(f"grads/param.{name}.position_bias", dtable, table_gradient, [f"grads/{name}.scores"])


def _tap_band_weight(params: Params, dband_weight, run: Run, name: str) -> None:
    config, _, tap, _ = run

    def from_products(dscores, *products):
        if config.band_weights == "fixed":
            return np.zeros_like(params["band_weight"])
        return ops.band_sum.backward(dscores, _combine(params, run, *products)[1])[2]

    def from_heads(dscores, *queries_and_keys):
        q, k = queries_and_keys[0::2], queries_and_keys[1::2]
        return from_products(dscores, *(ops.matmul.forward(*pair)[0] for pair in zip(q, k)))

    read, op = [f"{name}.scores{band}.int" for band in config.bands], from_products
    if config.binarize == "none":
        read, op = [f"{name}.{t}{band}.head_z" for band in config.bands for t in "qk"], from_heads
    tap(f"grads/param.{name}.band_weight", dband_weight, op, [f"grads/{name}.scores", *read])
