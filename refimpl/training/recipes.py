"""Every setting of a training run, in one frozen dataclass; `read` takes one from a file.

The defaults are a short run of `didb_micro` on MNIST; what a shipped model had is in its card. A
recipe and a seed fix the result to the bit on one machine, with one backend; `shards` counts too,
because it sets the order in which gradients are added.

>>> Recipe(epochs=0)
Traceback (most recent call last):
    ...
refimpl.conventions.ConfigError: recipe: epochs is 0, expected an integer of at least 1
"""

import dataclasses
import json
import math
import numbers
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.conventions import ConfigError, did_you_mean
from refimpl.disk import read_text, unique_names

LARGEST = 2**16  # pixels a side of a training image


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hold the settings of a run [SPEC 7]; a bad value raises ConfigError.

    >>> Recipe(epochs=2, batch_size=10).steps(images=95, epochs=2)
    20
    """

    epochs: int = 5
    activation_epochs: int = 0  # before them, with binary activations and real weights
    batch_size: int = 100
    learning_rate: float = 2e-3  # at the top of the schedule
    alpha_rate: float = 0.02  # of attn.alpha, as a share of learning_rate; see optimizers
    muon_rate: float = 0.0  # of Muon on the blocks' matrices, likewise; 0 for AdamW there too
    weight_decay: float = 0.01  # on the matrices of real layers only
    warmup_fraction: float = 0.02  # of the steps of each stage
    smoothing: float = 0.05  # label smoothing, 0 for none
    teacher: str | None = None  # a shipped model's name or a file, for distillation
    distillation: float = 0.0  # weight of the teacher's loss, 0 for none, 1 for nothing else
    shift: int = 2  # pixels; every training image moves by up to this much each way
    flip: bool = False  # mirror half of the training images, left for right; not for digits
    crop: float = 1.0  # part of each side that a step sees, cut out at random; 1 for all
    clip_norm: float | None = None  # largest global gradient norm, None for no clipping
    seed: int = 0
    shards: int = 4  # parts of a batch, so small that what a part computes stays in the caches

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):  # NumPy's numbers have no place in JSON
                object.__setattr__(self, field.name, value.item())
        for name in ("epochs", "batch_size", "shards"):
            require_integer(f"recipe: {name}", getattr(self, name), 1)
        for name in ("activation_epochs", "shift", "seed"):
            require_integer(f"recipe: {name}", getattr(self, name), 0)
        if not isinstance(self.flip, bool):
            raise ConfigError(f"recipe: flip is {self.flip!r}, expected true or false")
        _require_real("learning_rate", self.learning_rate, 0, above=True)
        _require_real("alpha_rate", self.alpha_rate, 0)
        _require_real("muon_rate", self.muon_rate, 0)
        _require_real("weight_decay", self.weight_decay, 0)
        _require_real("warmup_fraction", self.warmup_fraction, 0, 1)
        _require_real("crop", self.crop, 0, 1, above=True, included=True)
        _require_real("smoothing", self.smoothing, 0, 1)
        _require_real("distillation", self.distillation, 0, 1, included=True)
        if self.clip_norm is not None:
            _require_real("clip_norm", self.clip_norm, 0, above=True)
        self._check_teacher()

    def _check_teacher(self) -> None:
        if self.teacher is None:
            return
        if not isinstance(self.teacher, str) or not self.teacher:
            raise ConfigError(
                f"recipe: teacher is {self.teacher!r}, expected the name or file of a model"
            )
        if self.distillation == 0:
            raise ConfigError(
                f"recipe: distillation is {self.distillation}, expected a number above 0: "
                f"teacher is {self.teacher!r}"
            )

    def steps(self, images: int, epochs: int) -> int:
        """Steps of so many epochs of so many training images."""
        return epochs * math.ceil(images / self.batch_size)

    def uncut(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of training images of which `crop` leaves `size` (H, W), both in pixels.

        ConfigError where they would have more than LARGEST pixels a side.

        >>> Recipe(crop=0.5).uncut((28, 32))
        (56, 64)
        """
        if self.crop == 1:
            return size
        if max(size) / self.crop > LARGEST:
            raise ConfigError(
                f"recipe: crop is {self.crop!r}, expected at least {max(size) / LARGEST:g}: what "
                f"is cut to {size[0]} x {size[1]} has at most {LARGEST:,} pixels a side"
            )
        height, width = (round(side / self.crop) for side in size)
        return height, width

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Recipe":
        """The inverse of to_json; fields left out keep their default."""
        if not isinstance(fields, Mapping):
            raise ConfigError(f"recipe: found {fields!r:.40}, expected an object with fields")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            meant = did_you_mean(unknown[0], known)
            raise ConfigError(
                f"recipe: unknown field {unknown[0]!r}, expected {', '.join(known)}{meant}"
            )
        return cls(**fields)


def complete(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_json` gave once, with all fields of today: one that came later had its default."""
    return {**Recipe().to_json(), **fields}


def read(path: str | os.PathLike) -> Recipe:
    """The recipe in a JSON or TOML file; fields left out keep their default.

    ConfigError names the file, and what is wrong in it.
    """
    fields = read_fields(path)
    try:
        return Recipe.from_json(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
    """The top level of a JSON or TOML file; ConfigError where it is no such file."""
    path = Path(path)
    parse = {".json": _parse_json, ".toml": _parse_toml}.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(f"{path}: suffix {path.suffix!r}, expected '.json' or '.toml'")
    try:
        fields = parse(read_text(path))  # an editor may have put a mark first
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: no {path.suffix[1:].upper()}: {reason}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: found {fields!r:.40}, expected an object with fields")
    return fields


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=unique_names)


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def require_integer(name: str, value: Any, least: int) -> None:
    """ConfigError unless a field is an integer of at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}, expected an integer of at least {least}")


def _require_real(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    included: bool = False,
) -> None:
    """low <= value < high; low < value with `above`, value <= high with `included`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        too_low = value <= low if above else value < low
        too_high = value > high if included else value >= high
        # the last also refuses NaN, and integers that no float can hold
        if not too_low and not too_high and value <= sys.float_info.max:
            return
    expected = f"a finite number {'above' if above else 'of at least'} {low}"
    if high < math.inf:
        expected += f" and {'at most' if included else 'below'} {high}"
    raise ConfigError(f"recipe: {name} is {value!r}, expected {expected}")
