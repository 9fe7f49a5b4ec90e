"""Where the time of a forward goes, layer by layer: the operations of a backend, each with a clock.

The interpreter calls an operation of its backend for each node of the network's list, in order, so
the n-th call of a run is that of the n-th node. Layers are the rows of `models.summary`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import VisionTransformer, binary, summary
from refimpl.models.nodes import Network
from refimpl.models.params import Params

RUNS = 9  # after one that is not counted: it fills caches
SECONDS = 3.0  # a large network is run less often


class Timing(NamedTuple):
    """Medians over `runs` runs."""

    layers: dict[str, float]  # layer, as in `models.summary` -> seconds in its operations
    seconds: float  # of a whole run
    runs: int


def measure(
    model: VisionTransformer, params: Params, images: np.ndarray, backend: Any = ops
) -> Timing:
    """Time of `model.predict` on images (B, channels, H, W); errors as there."""
    clock = _Clock(backend)
    model.predict(params, images, backend=clock)
    totals, calls, start = [], [], time.perf_counter()
    while len(totals) < RUNS and (not totals or time.perf_counter() - start < SECONDS):
        clock.seconds = []
        begin = time.perf_counter()
        model.predict(params, images, backend=clock)
        totals.append(time.perf_counter() - begin)
        calls.append(clock.seconds)
    medians = map(statistics.median, zip(*calls, strict=True))
    layers = by_layer(binary.network(model.config, images.shape[2:]), medians)
    return Timing(layers, statistics.median(totals), len(totals))


def by_layer(network: Network, seconds: Iterable[float]) -> dict[str, float]:
    """Add up the seconds of every node, in order of computation, layer by layer."""
    layers = dict.fromkeys(summary.layers(network), 0.0)
    for node, spent in zip(network.nodes, seconds, strict=True):
        layers[node.layer] += spent
    return layers


class _Clock:
    """A backend that notes how long each call of another one takes."""

    def __init__(self, backend: Any):
        self.backend = backend
        self.seconds: list[float] = []

    def __getattr__(self, operation: str) -> SimpleNamespace:
        if operation not in ops.__all__:  # a whole unit, which would hide the operations in it
            raise AttributeError(operation)
        function = getattr(self.backend, operation).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds.append(time.perf_counter() - begin)

        return SimpleNamespace(forward=forward)
