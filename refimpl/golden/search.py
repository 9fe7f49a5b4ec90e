"""Random networks for bundles, and inputs without a value next to a threshold [SPEC 8.1].

A bundle is tie-free if every margin exceeds its bound in mode free, for a float32 candidate: then
every correct port has every bit and whole number of it. Few inputs are; a seeded search finds one.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refimpl.conventions import GoldenFileError
from refimpl.golden import bounds, record
from refimpl.golden.record import Step
from refimpl.models import Config, VisionTransformer, flatten, unflatten
from refimpl.models import params as parameters
from refimpl.models.binary import network
from refimpl.models.params import Params


class Found(NamedTuple):
    """The result of a search."""

    images: np.ndarray  # like those that it started from
    attempts: int
    seconds: float


class _CloseError(Exception):
    """A value too near to its threshold: the rest of the run is not worth its time."""

    def __init__(self, name: str, step: Step):
        super().__init__(name)
        self.name, self.step = name, step


def draw(config: Config, seed: int, images: int = 1) -> tuple[Params, np.ndarray]:
    """Draw parameters of an untrained network and images (images, channels, H, W), float32.

    Unlike `model.init` no move, shift or bias is 0, signs are mixed, and the probabilities lie on
    both sides of alpha / 2: so every threshold is busy, and few values are ties [SPEC 6.6].

    >>> from refimpl.models import create_model
    >>> params, image = draw(create_model("didb_micro").config, seed=0)
    >>> image.shape, bool(params["blocks"]["0"]["attn"]["q_low"]["move"].all())
    ((1, 1, 28, 28), True)
    """
    rng = np.random.default_rng(seed)
    drawn = parameters.draw(network(config).parameters, rng)
    params = unflatten({path: value.astype(np.float32) for path, value in drawn.items()})
    drawn = rng.standard_normal((images, config.channels, *config.image_size))
    return params, drawn.astype(np.float32)


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

    >>> from refimpl.models import create_model
    >>> model = create_model("react_micro", dim=8, depth=1, image_size=8)
    >>> params, image = draw(model.config, seed=0)
    >>> tie_free(model, params, image).images.shape
    (1, 1, 8, 8)
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
        if close.step.op.shown.what == "weight.bit":
            raise GoldenFileError(
                f"{close.name}: ties of weights; expected none: no input removes them"
            )
    raise GoldenFileError(
        f"no tie-free input among {limit}, {time.perf_counter() - start:.0f} s; expected one: "
        "try another seed or a smaller network"
    )


def is_tie_free(model: VisionTransformer, params: Params, images: np.ndarray) -> bool:
    """Whether every margin of a forward in float64 exceeds its bound in mode free."""
    return _first_close(model, params, images) is None


def _first_close(
    model: VisionTransformer, params: Params, images: np.ndarray
) -> _CloseError | None:
    """The first bit tap with a margin that does not exceed its bound."""
    params = record.cast(params, np.float64)
    steps: dict[str, Step] = {record.INPUT: Step(images.astype(np.float64), None, ())}
    reference = bounds.Reference(model.network, flatten(params), steps)
    free = bounds.Free(reference, bounds.UNITS["float32"])

    def tap(name, value, op, inputs):
        step = steps[name] = Step(value, op, tuple(inputs))
        if step.kind == "bit":
            distance = np.abs(steps[step.z].value - step.threshold)
            if (distance <= free[name]).any():
                raise _CloseError(name, step)

    try:
        model.forward(params, steps[record.INPUT].value, tap=tap)
    except _CloseError as error:
        return error
    return None
