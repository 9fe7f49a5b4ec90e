"""8-bit images to the floats that a model reads; stored with the model, so it travels with it.

    crop -> grey or RGB -> resize -> (invert) -> (pixel / 255 - mean) / std

>>> grey = Preprocessing(size=(1, 2), mode="grey", mean=(0.5,), std=(0.25,))
>>> grey.apply_array(np.array([[[0, 255]]], dtype=np.uint8)).tolist()     # (n, H, W)
[[[[-2.0, 2.0]]]]
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
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
    # Mean pixel, 0 to 1 and before `invert`, of the darkest and the brightest training image.
    brightness: tuple[float, float] | None = None

    def __post_init__(self):
        for name in ("size", "mean", "std", "brightness"):  # a JSON array arrives as a list
            value = getattr(self, name)
            if name == "brightness" and value is None:
                continue
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
        if self.brightness is not None:
            if len(self.brightness) != 2 or not all(map(_finite, self.brightness)):
                raise _error("brightness", self.brightness, "two finite numbers")
            if not 0 <= self.brightness[0] <= self.brightness[1] <= 1:
                raise _error("brightness", self.brightness, "low before high, from 0 to 1")

    @classmethod
    def plain(cls, size: tuple[int, int], channels: int) -> "Preprocessing":
        """Pixels from 0 to 1, nothing subtracted, for a model that reads (channels, *size)."""
        if channels not in (1, 3):
            raise ConfigError(
                f"preprocessing: the model reads {channels} channels, expected 1 (grey) or 3 (RGB)"
            )
        mode = "grey" if channels == 1 else "rgb"
        return cls(size, mode, mean=(0.0,) * channels, std=(1.0,) * channels)

    @property
    def channels(self) -> int:
        return 1 if self.mode == "grey" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what `pixels` makes of an image: (H, W) or (H, W, 3)."""
        return self.size if self.mode == "grey" else (*self.size, 3)

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict of JSON values."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of to_json; resampling, crop, invert and brightness may be left out."""
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
        return self.normalise(self.pixels(image)[None])[0]

    def apply_array(self, images: np.ndarray) -> np.ndarray:
        """Images as arrays, uint8 (n, H, W) grey or (n, H, W, 3) -> float32 (n, channels, H, W).

        Equal to `apply` on each of them; quick for those that have the model's size already.
        """
        return self.normalise(self.pixels_array(images))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Crop, grey or RGB, resize: any PIL image -> uint8 (H, W) or (H, W, 3)."""
        image = to_plain(image).convert(MODES[self.mode])
        width, height = image.size
        left, top = width * (1 - self.crop) / 2, height * (1 - self.crop) / 2
        box = (left, top, width - left, height - top)
        resampling = Image.Resampling[self.resampling.upper()]
        return np.asarray(image.resize(self.size[::-1], resampling, box=box))

    def unsized(self, image: Image.Image) -> np.ndarray:
        """Grey or RGB at the image's own size: any PIL image -> uint8 (H, W) or (H, W, 3)."""
        return np.asarray(to_plain(image).convert(MODES[self.mode]))

    def pixels_array(self, images: np.ndarray) -> np.ndarray:
        """`pixels` of images as arrays, uint8 (n, H, W) or (n, H, W, 3)."""
        colour = images.ndim == 4 and images.shape[-1] == 3
        if images.dtype != np.uint8 or not (colour or images.ndim == 3):
            raise DataError(
                f"images: found {images.dtype} {images.shape}, "
                "expected uint8 (n, H, W) or (n, H, W, 3)"
            )
        if images.shape[1:] == self.shape and self.crop == 1:
            return images
        pixels = [self.pixels(Image.fromarray(image)) for image in images]
        return np.stack(pixels) if pixels else np.empty((0, *self.shape), np.uint8)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """What `pixels` made, uint8 (n, H, W) or (n, H, W, 3) -> float32 (n, channels, H, W).

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

    def inverted(self) -> "Preprocessing":
        """The same for images in which dark and light have changed places."""
        seen = self.brightness and (1 - self.brightness[1], 1 - self.brightness[0])
        return dataclasses.replace(self, invert=not self.invert, brightness=seen)

    def measured(self, pixels: np.ndarray) -> "Preprocessing":
        """A copy with mean, std and brightness of training images, to four digits.

        pixels: what `pixels` made of them, uint8 (n, H, W) or (n, H, W, 3), n >= 1.
        """
        return self.measured_over(np.array_split(pixels, math.ceil(len(pixels) / 100)))

    def measured_over(self, batches: Iterable[np.ndarray]) -> "Preprocessing":
        """`measured` of images in batches; how they are divided makes no difference."""
        counts = np.zeros((self.channels, 256), np.int64)  # of each level
        low, high = 1.0, 0.0
        for pixels in batches:
            for channel, count in enumerate(counts):
                count += np.bincount(pixels.reshape(-1, self.channels)[:, channel], minlength=256)
            means = pixels.reshape(len(pixels), -1).mean(axis=1) / 255  # (n,)
            low, high = min(low, means.min()), max(high, means.max())
        levels = np.arange(256) / 255
        if self.invert:
            levels = 1 - levels
        mean, std = [], []
        for count in counts:
            share = count / count.sum()
            mean.append(float(share @ levels))
            std.append(float(np.sqrt(share @ (levels - mean[-1]) ** 2)))
        return dataclasses.replace(
            self,
            mean=tuple(round(value, 4) for value in mean),
            std=tuple(round(value, 4) or 1.0 for value in std),  # images of one single level
            # outwards, so that no training image is outside
            brightness=(math.floor(1e4 * low) / 1e4, math.ceil(1e4 * high) / 1e4),
        )

    def unlike(self, pixels: np.ndarray) -> str | None:
        """In words, what sets an image apart from every image of the training; None: nothing.

        pixels: what `pixels` made of it, uint8 (H, W) or (H, W, 3). Only brightness is looked at,
        so None is no promise.
        """
        if self.brightness is None:
            return None
        low, high = self.brightness
        found = float(pixels.mean()) / 255
        if low <= found <= high:
            return None
        text = f"brightness {found:.2f}, the images of the training had {low:.2f} to {high:.2f}"
        exchanged = low <= 1 - found <= high
        return f"{text}: dark and light seem to be exchanged" if exchanged else text


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _error(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"preprocessing: {name} is {value!r}, expected {expected}")
