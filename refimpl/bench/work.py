"""What the contenders are given: the same numbers for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import ConfigError
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import Config, VisionTransformer, create_model, flatten
from refimpl.models.summary import summarise

MOST = 2**29  # bytes of what all contenders are given


class Product(NamedTuple):
    """sign(a) b^T, or a b^T where a is boolean, over the last axis of both."""

    name: str
    a: np.ndarray  # (..., M, K) float32, activations
    b: np.ndarray  # (..., N, K) float32, +1 and -1
    boolean: bool = False  # whether a is 0 and 1

    @property
    def factor(self) -> np.ndarray:
        """The left factor as float32: what has bits, without them."""
        return self.a if self.boolean else np.where(self.a >= 0, np.float32(1), np.float32(-1))

    @property
    def macs(self) -> int:
        return math.prod(self.a.shape) * self.b.shape[-2]


class Network(NamedTuple):
    """A network with random parameters, and images for it."""

    name: str
    config: Config
    params: dict[str, Any]
    images: np.ndarray  # (B, channels, H, W) float32

    @property
    def model(self) -> VisionTransformer:
        return VisionTransformer(self.config)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """By dotted name."""
        return flatten(self.params)

    @property
    def macs(self) -> int:
        total = summarise(self.config).total
        return len(self.images) * (total.macs_1bit + total.macs_32bit)


class Lesson(NamedTuple):
    """A batch to learn from."""

    images: np.ndarray  # (B, H, W), with three channels (B, H, W, 3), uint8
    labels: np.ndarray  # (B,)
    prepare: Callable[[np.ndarray], np.ndarray]  # images -> float32 (B, channels, H, W)


def product(name: str, shape_a: tuple, shape_b: tuple, boolean: bool = False) -> Product:
    """Normal activations, or 0 and 1 where `boolean`, and signs; ConfigError above MOST bytes."""
    products = (*shape_a[:-1], shape_b[-2])
    _require_room(name, 4 * max(map(math.prod, (shape_a, shape_b, products))))
    rng = np.random.default_rng(0)
    a = rng.standard_normal(shape_a, dtype=np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), shape_b)
    return Product(name, (a > 0).astype(np.float32) if boolean else a, signs, boolean)


def network(name: str, batch: int, **fields: Any) -> Network:
    """An architecture of [SPEC 6.5] by name; `fields` override its configuration.

    ConfigError where the batch has more than MOST bytes.
    """
    rng = np.random.default_rng(0)
    model = create_model(name, **fields)
    config = model.config
    require_batch(config, batch)
    shape = (batch, config.channels, *config.image_size)
    images = rng.standard_normal(shape, dtype=np.float32)
    return Network(name, config, model.init(rng), images)


def lesson(config: Config, batch: int) -> Lesson:
    """Random pixels and labels for a network that reads one channel or three.

    ConfigError where the batch has more than MOST bytes.
    """
    require_batch(config, batch)
    rng = np.random.default_rng(0)
    channels = () if config.channels == 1 else (config.channels,)
    images = rng.integers(0, 256, (batch, *config.image_size, *channels), dtype=np.uint8)
    labels = rng.integers(0, config.num_classes, batch)
    return Lesson(
        images, labels, Preprocessing.plain(config.image_size, config.channels).apply_array
    )


def require_batch(config: Config, batch: int) -> None:
    """Raise ConfigError where a batch for a network has more than MOST bytes."""
    pixels = config.channels * math.prod(config.image_size)
    _require_room(f"a batch of {batch} images", 4 * batch * pixels)


def _require_room(what: str, needed: int) -> None:
    if needed > MOST:
        raise ConfigError(f"bench: {what}: {needed:,} bytes; expected at most {MOST:,}")
