"""From tokens to the logits of an image: pooling and the head [SPEC 6.3].

logits = head(x[:, 0])                     pool="cls"
       = head(mean over the tokens of x)   pool="mean", which has no class token
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refimpl import ops
from refimpl.conventions import require_shape
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.run import Run, pick

Cache = ops.linear.Cache


def forward(params: Params, x: np.ndarray, run: Run) -> tuple[np.ndarray, Cache]:
    """params of the head, x (B, N, C), the tap "norm.out" -> logits (B, classes)."""
    logits, cache = run.backend.linear.forward(_pool(x, run.config), **params)
    if run.tap is not None:
        run.tap("logits", logits, pick(_classify(params, run.config), 0), ["norm.out"])
    return logits, cache


def backward(
    dlogits: np.ndarray, params: Params, cache: Cache, run: Run
) -> tuple[np.ndarray, Params]:
    """dlogits (B, classes) -> (dx (B, N, C), gradients of the head's params)."""
    config, backend, tap, _ = run
    require_shape("backward", "dlogits", dlogits, (len(cache.x), *config.logits_shape))
    dpooled, dweight, dbias = backend.linear.backward(dlogits, cache)
    dx = _pool_backward(dpooled, config)
    if tap is not None:
        _tap_backward(params, dlogits, dx, {"weight": dweight, "bias": dbias}, run)
    return dx, {"weight": dweight, "bias": dbias}


def _pool(x: np.ndarray, config: Config) -> np.ndarray:
    """(B, N, C) -> (B, C)."""
    return x[:, 0] if config.pool == "cls" else x.mean(axis=1)


def _pool_backward(dpooled: np.ndarray, config: Config) -> np.ndarray:
    """(B, C) -> (B, N, C)."""
    (batch, channels), tokens = dpooled.shape, config.last_stage.tokens
    dx = np.zeros((batch, tokens, channels), dpooled.dtype)
    if config.pool == "cls":
        dx[:, 0] = dpooled
    else:
        dx[:] = dpooled[:, None] / tokens
    return dx


def _classify(params: Params, config: Config) -> Callable:
    return lambda x: ops.linear.forward(_pool(x, config), **params)


def _tap_backward(params: Params, dlogits, dx, grads: Params, run: Run) -> None:
    config, tap = run.config, run.tap

    def head(dlogits, x):
        return ops.linear.backward(dlogits, _classify(params, config)(x)[1])

    tap("grads/logits", dlogits, None, [])
    read = ["grads/logits", "norm.out"]
    for i, leaf in enumerate(("weight", "bias")):
        tap(f"grads/param.head.{leaf}", grads[leaf], pick(head, i + 1), read)
    tap("grads/norm.out", dx, lambda *r: _pool_backward(head(*r)[0], config), read)
