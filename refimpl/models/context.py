"""From scores to context: softmax, boolean attention, product with the values [SPEC 6.1, 6.7].

context = Boolean(softmax(scores); alpha) b_v          per head, over the keys that a query sees
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import heads
from refimpl.models.run import Run, dot, pick, signs


class Cache(NamedTuple):
    softmax: ops.softmax.Cache
    attention: ops.boolean_attention.Cache


def forward(
    alpha: np.ndarray, scores: np.ndarray, value: np.ndarray, run: Run, *, name: str
) -> tuple[np.ndarray, Cache]:
    """scores (B, heads, N, N), value (B, heads, d, N) -> context (B, heads, N, d)."""
    mask = heads.mask(run.stage, len(scores))
    prob, softmax_cache = run.backend.softmax.forward(scores, mask)
    context, attention_cache = run.backend.boolean_attention.forward(
        prob, value, alpha, binarize=run.config.binarize
    )
    if run.tap is not None:
        _tap_forward(alpha, prob, value, context, run, name)
    return context, Cache(softmax_cache, attention_cache)


def backward(
    dcontext: np.ndarray, alpha: np.ndarray, cache: Cache, run: Run, *, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dcontext (B, heads, N, d) -> (dscores, dvalue, dalpha)."""
    dprob, dvalue, dalpha = run.backend.boolean_attention.backward(dcontext, cache.attention)
    (dscores,) = run.backend.softmax.backward(dprob, cache.softmax)
    if run.tap is not None:
        _tap_backward(alpha, dprob, dvalue, dalpha, dscores, run, name)
    return dscores, dvalue, dalpha


def _tap_forward(alpha, prob, value, context, run: Run, name: str) -> None:
    tap = run.tap
    value_name = heads.binary_name(f"{name}.v", run.config)

    def softmax(scores):
        return ops.softmax.forward(scores, heads.mask(run.stage, scores.shape[0]))[0]

    if run.config.binarize == "none":
        tap(f"{name}.prob", prob, softmax, [f"{name}.scores"])
        product = pick(ops.matmul.forward, 0)
        tap(f"{name}.context", context, product, [f"{name}.prob", value_name])
        return

    def ratio_of(scores):
        return ops.boolean.threshold(softmax(scores), alpha)[0]

    def integers_of(bit, value_bit):
        return dot(bit, signs(value_bit, np.int32))

    def scale(integers):
        return integers.astype(step.dtype) * step

    ratio, step = ops.boolean.threshold(prob, alpha)
    integers = dot(ratio > 0.5, value)
    tap(f"{name}.prob.z", ratio, ratio_of, [f"{name}.scores"])
    tap(f"{name}.prob.bit", ratio > 0.5, lambda ratio: ratio > 0.5, [f"{name}.prob.z"])
    tap(f"{name}.context.int", integers, integers_of, [f"{name}.prob.bit", value_name])
    tap(f"{name}.context", context, scale, [f"{name}.context.int"])


def _tap_backward(alpha, dprob, dvalue, dalpha, dscores, run: Run, name: str) -> None:
    tap, real = run.tap, run.config.binarize == "none"
    value_name = heads.binary_name(f"{name}.v", run.config)
    prob_name = f"{name}.prob" if real else f"{name}.prob.z"
    step = ops.boolean.step_of(alpha)

    def attention_cache(prob, value):
        if real:
            return ops.boolean_attention.Cache(None, ops.matmul.Cache(prob, value), alpha)
        bit = prob > 0.5  # prob is the ratio q here
        product = ops.matmul.Cache(step * bit, signs(value, alpha.dtype))
        return ops.boolean_attention.Cache(ops.boolean.Cache(prob, bit, alpha), product, alpha)

    def gradients(dcontext, prob, value):
        return ops.boolean_attention.backward(dcontext, attention_cache(prob, value))

    def softmax_gradient(dprob, prob):
        return ops.softmax.backward(dprob, ops.softmax.Cache(prob if real else prob * step))[0]

    read = [f"grads/{name}.context", prob_name, value_name]
    tap(f"grads/{name}.prob", dprob, pick(gradients, 0), read)
    tap(f"grads/{value_name}", dvalue, pick(gradients, 1), read)
    tap(f"grads/param.{name}.alpha", dalpha, pick(gradients, 2), read)
    tap(f"grads/{name}.scores", dscores, softmax_gradient, [f"grads/{name}.prob", prob_name])
