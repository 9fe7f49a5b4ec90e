"""8-bit images to the floats that a model reads; stored with the model, so it travels with it.

    crop -> grey or RGB -> resize -> (invert) -> (pixel / 255 - mean) / std

>>> grey = Preprocessing(size=(1, 2), mode="grey", mean=(0.5,), std=(0.25,))
>>> grey.apply_array(np.array([[[0, 255]]], dtype=np.uint8)).tolist()     # (n, H, W)
[[[[-2.0, 2.0]]]]
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from refimpl.conventions import ConfigError, DataError
from refimpl.data.images import to_plain

MODES = {"grey": "L", "rgb": "RGB"}
RESAMPLINGS = ("nearest", "box", "bilinear", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input; a bad value raises ConfigError."""

    size: tuple[int, int]  # (H, W); the crop is resized to it, its aspect ratio is not kept
    mode: str  # "grey" (one channel) or "rgb" (three)
    mean: tuple[float, ...]  # one a channel, of pixels from 0 to 1
    std: tuple[float, ...]
    resampling: str = "bilinear"
    crop: float = 1.0  # part of each side that is kept, about the centre
    invert: bool = False  # dark and light change places

    def __post_init__(self):
        for name in ("size", "mean", "std"):  # a JSON array arrives as a list
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise _error(name, value, "a list of numbers")
            object.__setattr__(self, name, tuple(value))
        if len(self.size) != 2 or not all(_integer(side) and side > 0 for side in self.size):
            raise _error("size", self.size, "two positive integers, height and width")
        if self.mode not in tuple(MODES):
            raise _error("mode", self.mode, " or ".join(MODES))
        if self.resampling not in RESAMPLINGS:
            raise _error("resampling", self.resampling, ", ".join(RESAMPLINGS))
        if not (_finite(self.crop) and 0 < self.crop <= 1):
            raise _error("crop", self.crop, "a fraction above 0 and at most 1")
        if not isinstance(self.invert, bool):
            raise _error("invert", self.invert, "true or false")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(_finite, values)):
                raise _error(name, values, f"{self.channels} finite number(s), one a channel")
        if min(self.std) <= 0:
            raise _error("std", self.std, "numbers above 0")

    @property
    def channels(self) -> int:
        return 1 if self.mode == "grey" else 3

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict of JSON values."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of to_json; resampling, crop and invert may be left out."""
        if not isinstance(fields, Mapping):
            raise ConfigError(f"preprocessing: found {fields!r}, expected an object with fields")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(fields) - known
        missing = {"size", "mode", "mean", "std"} - set(fields)
        if unknown or missing:
            what, names = ("unknown", unknown) if unknown else ("missing", missing)
            raise ConfigError(
                f"preprocessing: {what} field {sorted(names)[0]!r}, "
                f"expected {', '.join(sorted(known))}"
            )
        return cls(**fields)

    def apply(self, image: Image.Image) -> np.ndarray:
        """One PIL image of any size and mode -> float32 (channels, H, W)."""
        return self._normalise(self._pixels(image)[None])[0]

    def apply_array(self, images: np.ndarray) -> np.ndarray:
        """Images as arrays, uint8 (n, H, W) grey or (n, H, W, 3) -> float32 (n, channels, H, W).

        Equal to `apply` on each of them; quick for those that have the model's size already.
        """
        colour = images.ndim == 4 and images.shape[-1] == 3
        if images.dtype != np.uint8 or not (colour or images.ndim == 3):
            raise DataError(
                f"images: found {images.dtype} {images.shape}, "
                "expected uint8 (n, H, W) or (n, H, W, 3)"
            )
        ready = images.shape[1:3] == self.size and colour == (self.mode == "rgb")
        if not ready or self.crop < 1:
            pixels = [self._pixels(Image.fromarray(image)) for image in images]
            images = np.stack(pixels) if pixels else np.empty((0, *self._shape), np.uint8)
        return self._normalise(images)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.size if self.mode == "grey" else (*self.size, 3)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """Crop, grey or RGB, resize: uint8 (H, W) or (H, W, 3)."""
        image = to_plain(image).convert(MODES[self.mode])
        width, height = image.size
        left, top = width * (1 - self.crop) / 2, height * (1 - self.crop) / 2
        box = (left, top, width - left, height - top)
        resampling = Image.Resampling[self.resampling.upper()]
        return np.asarray(image.resize(self.size[::-1], resampling, box=box))

    def _normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W) or (n, H, W, 3) -> float32 (n, channels, H, W).

        A pixel has 256 values: each is computed once, in float64, and rounded once.
        """
        levels = np.arange(256) / 255
        if self.invert:
            levels = 1 - levels
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        table = ((levels - mean) / std).astype(np.float32)  # (channels, 256)
        if self.mode == "grey":
            return table[0][pixels][:, None]
        return np.stack([table[c][pixels[..., c]] for c in range(3)], axis=1)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _error(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"preprocessing: {name} is {value!r}, expected {expected}")
