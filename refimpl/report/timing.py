"""Where the time of a forward goes, layer by layer: the operations of a backend, each with a clock.

The model calls its operations one after the other, as attributes of its backend, so the n-th call
of a run belongs to the same layer every time. Layers are the rows of `models.summary`. What the
model adds itself (shortcuts, positions) belongs to no operation and is not in any layer's time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import Config, VisionTransformer, summary
from refimpl.models.params import Params

RUNS = 9  # after one that is not counted: it fills caches
SECONDS = 3.0  # a large network is run less often

PROJECTION = ("binary_linear", "layer_norm", "fit", "rprelu")
# Layer, without its block -> operations that it calls, in order.
OPERATIONS = {
    "patch_embed": ("patch_embed",),
    "tokens": (),
    "norm": ("layer_norm",),
    "norm1": ("layer_norm",),
    "attn.bands": ("bands",),
    "attn.prob": ("softmax",),
    "attn.context": ("boolean_attention",),
    "attn.norm": ("layer_norm",),
    "attn.differential": ("neighbours", "differential"),
    "attn.rprelu": ("rprelu",),
    "attn.proj": PROJECTION,
    "scale1": ("layer_scale",),
    "norm2": ("layer_norm",),
    "mlp.up": PROJECTION,
    "mlp.down": PROJECTION,
    "scale2": ("layer_scale",),
    "head": ("linear",),
    "logits": ("interpolate",),
}
REAL_OPERATIONS = OPERATIONS | {
    "attn.qkv": ("linear",),
    "attn.scores": ("matmul",),
    "attn.context": ("matmul",),
    "attn.proj": ("linear",),
    "mlp.fc1": ("linear",),
    "mlp.gelu": ("gelu",),
    "mlp.fc2": ("linear",),
}


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
    layers = dict.fromkeys((row.name for row in summary.summarise(model.config).rows), 0.0)
    for (layer, _), seconds in zip(operations(model.config), medians, strict=True):
        layers[layer] += seconds
    return Timing(layers, statistics.median(totals), len(totals))


def operations(config: Config) -> Iterator[tuple[str, str]]:
    """Every call of an operation in a forward, in order: (layer, operation)."""
    table = dict(REAL_OPERATIONS if config.block == "real" else OPERATIONS)
    if config.block == "binary":
        signs = () if config.binarize == "none" else ("sign",)
        sums = ("band_sum",) if config.similarity == "haar" else ()
        table |= {f"attn.{t}": (*PROJECTION, *signs) for t in config.attention_inputs}
        table["attn.scores"] = (*("matmul",) * len(config.bands), *sums)
    for row in summary.summarise(config).rows:
        kind = row.name.split(".", 2)[2] if row.name.startswith("blocks.") else row.name
        yield from ((row.name, operation) for operation in table[kind])


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
