"""How many images a second one network answers, one at a time on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from refimpl.bench import measure
from refimpl.bench.measure import OURS, Contender, timed
from refimpl.models import VisionTransformer, packing

ROUNDS = 5


def images_per_second(model: VisionTransformer, params: Mapping[str, Any]) -> float:
    """By the quickest program of ours: the engine, or NumPy with and without the kernels.

    The input is random float32 (1, channels, H, W): no branch of a network depends on it.
    """
    from refimpl.kernels import backend

    shape = (1, model.config.channels, *model.config.image_size)
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if packing.for_engine(model.config):
        from refimpl import engine

        compiled = engine.compile(model, params)
        programs = [lambda: compiled(image)]
    else:
        programs = [
            lambda: model.predict(params, image),
            lambda: model.predict(params, image, backend=backend),
        ]
    entries = [("", Contender(OURS, timed(run), None, 0, threads=1)) for run in programs]
    with threadpool_limits(1):
        rows = measure.compare(entries, ROUNDS)
    return 1000 / min(row.median_ms for row in rows)
