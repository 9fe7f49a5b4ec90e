"""The binary MLP: P_down(P_up(x; C -> rC); rC -> C) [SPEC 6.1]."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.models import projection
from refimpl.models.params import Params
from refimpl.models.run import Run


class Cache(NamedTuple):
    up: projection.Cache
    down: projection.Cache


def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, C) -> y (B, N, C)."""
    up, up_cache = projection.forward(
        params["up"], x, run, name=f"{name}.up", source=source
    )  # (B, N, rC)
    down, down_cache = projection.forward(
        params["down"], up, run, name=f"{name}.down", source=f"{name}.up.out"
    )
    return down, Cache(up_cache, down_cache)


def backward(
    dy: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dy (B, N, C) -> (dx (B, N, C), gradients of the parameters)."""
    dup, down_grads = projection.backward(
        dy, params["down"], cache.down, run, name=f"{name}.down", source=f"{name}.up.out"
    )
    if run.tap is not None:
        read = projection.reads(f"{name}.down")
        run.tap(f"grads/{name}.up.out", dup, projection.input_gradient, read)
    dx, up_grads = projection.backward(
        dup, params["up"], cache.up, run, name=f"{name}.up", source=source
    )
    return dx, {"up": up_grads, "down": down_grads}
