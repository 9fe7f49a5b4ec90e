"""Random networks for bundles, and inputs without a value next to a threshold [SPEC 8.1].

A bundle is tie-free if every margin exceeds its bound in mode free, for a float32 candidate: then
every correct port has every bit and whole number of it. Few inputs are; a seeded search finds one.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np

from refimpl.conventions import GoldenFileError
from refimpl.golden import bounds, record
from refimpl.golden.record import Step
from refimpl.models import Config, VisionTransformer, unflatten
from refimpl.models.params import Params, block_of, shapes


class Found(NamedTuple):
    """The result of a search."""

    images: np.ndarray  # like those that it started from
    attempts: int
    seconds: float


class _CloseError(Exception):
    """A value too near to its threshold: the rest of the run is not worth its time."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def draw(config: Config, seed: int) -> tuple[Params, np.ndarray]:
    """Parameters of an untrained network and one image (1, channels, H, W), float32.

    Unlike `model.init` no move, shift or bias is 0, signs are mixed, and the probabilities lie on
    both sides of alpha / 2: so every threshold is busy, and few values are ties [SPEC 6.6].
    """
    rng = np.random.default_rng(seed)
    params = unflatten(
        {
            path: _draw(path, shape, config, rng).astype(np.float32)
            for path, shape in shapes(config).items()
        }
    )
    image = rng.standard_normal((1, config.channels, *config.image_size)).astype(np.float32)
    return params, image


def _draw(path: str, shape: tuple, config: Config, rng: np.random.Generator) -> np.ndarray:
    normal, leaf = np.asarray(rng.standard_normal(shape)), path.rsplit(".", 1)[-1]
    if path.endswith("attn.alpha"):  # the mean probability is 1 / N
        return np.asarray(rng.uniform(0.6, 2.0, shape)) / config.stage_of(block_of(path)).keys
    if leaf == "weight" and len(shape) > 1:
        real = config.block == "real" or not path.startswith(("blocks.", "merges."))
        return normal / math.sqrt(math.prod(shape[1:])) if real else 0.7 * normal
    if leaf in ("cls_token", "pos_embed", "position_bias"):
        return normal
    center = {"weight": 1.0, "shortcut": 1.0, "alpha": 1.0, "band_weight": 0.5, "slope": 0.25}
    return center.get(leaf, 0.0) + 0.3 * normal


def tie_free(
    model: VisionTransformer,
    params: Params,
    images: np.ndarray,
    seed: int = 0,
    limit: int = 10_000,
    noise: float = 1.0,
) -> Found:
    """Search for images like these whose margins all exceed their bounds.

    The first attempt is `images` itself; the next ones add normal noise of `noise` times their
    standard deviation, drawn from `seed`. GoldenFileError after `limit` attempts in vain.
    """
    start = time.perf_counter()
    params = record.cast(params, np.float64)
    deviation = float(images.std()) or 1.0
    for attempt in range(limit):
        found = images
        if attempt:
            rng = np.random.default_rng((seed, attempt))
            found = images + noise * deviation * rng.standard_normal(images.shape)
            found = found.astype(np.float32)
        close = _first_close(model, params, found)
        if close is None:
            return Found(found, attempt + 1, time.perf_counter() - start)
        if close.endswith(".weight.bit"):
            raise GoldenFileError(f"{close}: ties of weights; expected none: no input removes them")
    raise GoldenFileError(
        f"no tie-free input among {limit}, {time.perf_counter() - start:.0f} s; expected one: "
        "try another seed or a smaller network"
    )


def is_tie_free(model: VisionTransformer, params: Params, images: np.ndarray) -> bool:
    """Whether every margin of a forward in float64 exceeds its bound in mode free."""
    return _first_close(model, params, images) is None


def _first_close(model: VisionTransformer, params: Params, images: np.ndarray) -> str | None:
    """Name of the first bit tap with a margin that does not exceed its bound."""
    steps: dict[str, Step] = {record.INPUT: Step(images.astype(np.float64), None, ())}
    reference = bounds.Reference(model.config, record.cast(params, np.float64), steps)
    free = bounds.Free(reference, bounds.UNITS["float32"])

    def tap(name, value, op, inputs):
        steps[name] = Step(value, op, tuple(inputs))
        if record.kind_of(value) == "bit":
            distance = np.abs(steps[record.z_of(name)].value - record.threshold_of(name))
            if (distance <= free[name]).any():
                raise _CloseError(name)

    try:
        model.forward(reference.params, steps[record.INPUT].value, tap=tap)
    except _CloseError as error:
        return error.name
    return None
