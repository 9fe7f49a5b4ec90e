"""8-bit images to the floats that a model reads; stored with the model, so it travels with it.

    crop -> grey or RGB -> resize -> (invert) -> (pixel / 255 - mean) / std

>>> grey = Preprocessing(size=(1, 2), mode="grey", mean=(0.5,), std=(0.25,))
>>> grey.apply_array(np.array([[[0, 255]]], dtype=np.uint8)).tolist()     # (n, H, W)
[[[[-2.0, 2.0]]]]
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from refimpl.conventions import ConfigError, DataError, is_number
from refimpl.data.images import to_plain

MODES = {"grey": "L", "rgb": "RGB"}
PART = 2**23  # bytes of images that are measured at a time
MAX_PIXELS = 2**24  # of what a model reads: a file may claim any size
COLOURED = 0.02  # of the range of a pixel, from here on a picture has colours
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
    # Of the training images, before `invert`: the mean pixel, 0 to 1, of the darkest and the
    # brightest; the least contrast and, in RGB, the greatest colourfulness of any.
    brightness: tuple[float, float] | None = None
    contrast: float | None = None
    colour: float | None = None

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
        if math.prod(self.size) > MAX_PIXELS:
            raise _error("size", self.size, f"at most {MAX_PIXELS} pixels")
        if self.mode not in tuple(MODES):
            raise _error("mode", self.mode, " or ".join(MODES))
        if self.resampling not in RESAMPLINGS:
            raise _error("resampling", self.resampling, ", ".join(RESAMPLINGS))
        if not (is_number(self.crop) and 0 < self.crop <= 1):
            raise _error("crop", self.crop, "a fraction above 0 and at most 1")
        if not isinstance(self.invert, bool):
            raise _error("invert", self.invert, "true or false")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(is_number, values)):
                raise _error(name, values, f"{self.channels} finite number(s), one a channel")
        if min(self.std) <= 0:
            raise _error("std", self.std, "numbers above 0")
        if self.brightness is not None:
            if len(self.brightness) != 2 or not all(map(is_number, self.brightness)):
                raise _error("brightness", self.brightness, "two finite numbers")
            if not 0 <= self.brightness[0] <= self.brightness[1] <= 1:
                raise _error("brightness", self.brightness, "low before high, from 0 to 1")
        for name in ("contrast", "colour"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise _error(name, value, "a number from 0 to 1")

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
        """The inverse of to_json; all from resampling on may be left out."""
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
        return self._resized(to_plain(image).convert(MODES[self.mode]))

    def judged(self, image: Image.Image) -> "Judged":
        """`pixels` of any PIL image, and what sets it apart from those of the training."""
        plain = to_plain(image)
        pixels = self._resized(plain.convert(MODES[self.mode]))
        text = self.unlike(pixels)
        unread = text is not None and self.mode == "grey" and plain.mode == "RGB"
        colours = unread and bool(_colours(self._resized(plain)[None]) >= COLOURED)
        if colours:
            text = f"{text}; it has colours, the model reads grey"
        return Judged(pixels, text, colours, self.exchanged(pixels))

    def _resized(self, image: Image.Image) -> np.ndarray:
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

        A pixel has 256 values: each is computed once, in float64, and rounded once. DataError for
        pixels of another type, of which nothing says which value is white.
        """
        if getattr(pixels, "dtype", None) != np.uint8:
            found = getattr(pixels, "dtype", type(pixels).__name__)
            raise DataError(f"pixels: found {found}, expected uint8")
        levels = np.arange(256) / 255
        if self.invert:
            levels = 1 - levels
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        table = ((levels - mean) / std).astype(np.float32)  # (channels, 256)
        if self.mode == "grey":
            return table[0][pixels][:, None]
        return np.stack([table[c][pixels[..., c]] for c in range(3)], axis=1)

    def of_middle(self, part: float) -> "Preprocessing":
        """The same for images of which the middle, this part of each side, was cut out already.

        >>> Preprocessing((1, 1), "grey", (0.0,), (1.0,), crop=0.5).of_middle(0.5).crop
        1.0
        """
        return dataclasses.replace(self, crop=min(1.0, self.crop / part))

    def inverted(self) -> "Preprocessing":
        """The same for images in which dark and light have changed places."""
        seen = self.brightness and (1 - self.brightness[1], 1 - self.brightness[0])
        return dataclasses.replace(self, invert=not self.invert, brightness=seen)

    def measured(self, pixels: np.ndarray) -> "Preprocessing":
        """A copy with mean, std, brightness, contrast and colour of training images, to 4 digits.

        pixels: what `pixels` made of them, uint8 (n, H, W) or (n, H, W, 3), n >= 1.
        """
        return self.measured_over(np.array_split(pixels, math.ceil(len(pixels) / 100)))

    def measured_over(self, batches: Iterable[np.ndarray]) -> "Preprocessing":
        """`measured` of images in batches; how they are divided makes no difference."""
        counts = np.zeros((self.channels, 256), np.int64)  # of each level
        low, high, contrast, colour = 1.0, 0.0, 1.0, 0.0
        for pixels in _parts(batches):
            for channel, count in enumerate(counts):
                count += np.bincount(pixels.reshape(-1, self.channels)[:, channel], minlength=256)
            means = pixels.reshape(len(pixels), -1).mean(axis=1) / 255  # (n,)
            low, high = min(low, means.min()), max(high, means.max())
            contrast = min(contrast, _contrasts(pixels).min())
            if self.mode == "rgb":
                colour = max(colour, _colours(pixels).max())
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
            contrast=math.floor(1e4 * contrast) / 1e4,
            colour=math.ceil(1e4 * colour) / 1e4 if self.mode == "rgb" else None,
        )

    def unlike(self, pixels: np.ndarray) -> str | None:
        """In words, what sets an image apart from every image of the training; None: nothing.

        pixels: what `pixels` made of it, uint8 (H, W) or (H, W, 3). Brightness, contrast and in RGB
        colours are looked at, so None is no promise.
        """
        if self.brightness is not None:
            low, high = self.brightness
            found = float(pixels.mean()) / 255
            if not low <= found <= high:
                text = (
                    f"brightness {_apart(found, low, high)}, the images of the training had "
                    f"{_apart(low, found)} to {_apart(high, found)}"
                )
                if self.exchanged(pixels):
                    text += ": dark and light seem to be exchanged"
                return text
        (found,) = _contrasts(pixels[None]).tolist()
        if self.contrast is not None and found < self.contrast:
            words = _apart(found, self.contrast), _apart(self.contrast, found)
            return "contrast {}, the images of the training had {} or more".format(*words)
        found = float(_colours(pixels[None])[0]) if self.mode == "rgb" else 0.0
        if self.colour is not None and found > self.colour:
            words = _apart(found, self.colour), _apart(self.colour, found)
            return "colourfulness {}, the images of the training had {} or less".format(*words)
        return None


    def exchanged(self, pixels: np.ndarray) -> bool:
        """Whether an image has a brightness of the training's only with dark and light exchanged.

        pixels: as in `unlike`.
        """
        if self.brightness is None:
            return False
        (low, high), found = self.brightness, float(pixels.mean()) / 255
        return low <= 1 - found <= high and not low <= found <= high


class Judged(NamedTuple):
    """An image as a model reads it, and how far that is what the model was made for."""

    pixels: np.ndarray  # uint8 (H, W) or (H, W, 3)
    warning: str | None  # in words, what sets it apart from the images of the training
    colours: bool  # whether the picture has any that the model does not see, where it is unlike
    exchanged: bool  # whether dark and light are, and that may be all


def _parts(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches in parts of which memory holds a copy in int64 and floats, whatever their size."""
    for batch in batches:
        yield from np.array_split(batch, min(len(batch), -(-batch.nbytes // PART)) or 1)


def _contrasts(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, ...) -> (n,): standard deviation, as part of the greatest of such a brightness m.

    That is sqrt(m (1 - m)). Ink on paper comes near 1, whatever there is of it; photographs are far
    below.

    >>> _contrasts(np.array([[0, 255, 255], [9, 9, 9]], np.uint8))
    array([1., 0.])
    """
    levels = pixels.reshape(len(pixels), -1) / 255
    mean = levels.mean(axis=1)
    most = np.sqrt(mean * (1 - mean))
    return np.minimum(levels.std(axis=1) / np.where(most > 0, most, 1), 1)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) -> (n,): mean difference of brightest and darkest channel, 0 to 1."""
    return (pixels.max(axis=-1) - pixels.min(axis=-1)).mean(axis=(1, 2)) / 255


def _apart(value: float, *others: float) -> str:
    """A fraction with two digits, or as many as set it apart from the others, up to six."""
    for digits in range(2, 6):
        text = f"{value:.{digits}f}"
        if text not in [f"{other:.{digits}f}" for other in others]:
            return text
    return f"{value:.6f}"


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _error(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"preprocessing: {name} is {value!r}, expected {expected}")
