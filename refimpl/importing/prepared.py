"""How images are made ready for a network of others: from its configuration, or as options say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refimpl.conventions import ConfigError
from refimpl.data.preprocessing import Preprocessing
from refimpl.importing.said import Found, Said
from refimpl.models import Config

# PIL's numbers, as transformers writes them
RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
UNCROPPED = 384  # pixels from which ConvNeXT's processor leaves out its crop
OPTIONS = ("mean", "std", "crop", "resample")  # --size is known from the network


def preprocessing(
    said: Said, config: Config, options: Mapping[str, Any]
) -> tuple[Preprocessing | None, list[str]]:
    """The preprocessing, or None and which of OPTIONS nobody said."""
    found = _transformers(said, config.channels) or _timm(said)
    found |= {name: options[name] for name in OPTIONS if options.get(name) is not None}
    missing = [name for name in OPTIONS if found.get(name) is None]
    if missing:
        return None, missing
    if config.channels not in (1, 3):
        raise ConfigError(f"images have {config.channels} channels; expected 1 (grey) or 3 (RGB)")
    fields = {
        "size": config.image_size,
        "mode": "grey" if config.channels == 1 else "rgb",
        "mean": found["mean"],
        "std": found["std"],
        "crop": found["crop"],
        "resampling": found["resample"],
    }
    return Preprocessing(**fields), []


def _timm(said: Said) -> dict[str, Any]:
    names = {"mean": "mean", "std": "std", "crop": "crop_pct", "resample": "interpolation"}
    found = {ours: said.find(theirs) for ours, theirs in names.items()}
    # timm's scripts write "" for what was not given
    return {ours: value.value for ours, value in found.items() if value and value.value != ""}


def _transformers(said: Said, channels: int) -> dict[str, Any]:
    """preprocessor_config.json: resize, crop, rescale, normalise, each unless it says no."""
    place = said.find("preprocessor")
    if place is None:
        return {}
    fields = place.value
    factor = fields.get("rescale_factor", 1 / 255)
    scaled = isinstance(factor, float) and abs(factor * 255 - 1) < 1e-6
    if fields.get("do_rescale", True) is not True or not scaled:
        raise Found(place.where, "rescale_factor", factor).wrong("1/255")
    if fields.get("do_resize", True) is not True:
        raise Found(place.where, "do_resize", fields["do_resize"]).wrong("true")
    number = fields.get("resample", 2)
    if type(number) is not int or number not in RESAMPLINGS:
        raise Found(place.where, "resample", number).wrong(f"one of {list(RESAMPLINGS)}")
    plain = fields.get("do_normalize", True) is False
    return {
        "mean": [0.0] * channels if plain else fields.get("image_mean"),
        "std": [1.0] * channels if plain else fields.get("image_std"),
        "crop": _crop(place.where, fields),
        "resample": RESAMPLINGS[number],
    }


def _crop(where: str, fields: Mapping[str, Any]) -> float:
    """The part of a side that a crop in the middle of a resized image keeps."""
    if fields.get("do_center_crop", False) is not True:
        share = fields.get("crop_pct")  # of ConvNeXT's processor, which other networks use too
        small = share is not None and _side(where, "size", fields.get("size")) < UNCROPPED
        return share if small else 1.0
    size, crop = (_side(where, name, fields.get(name)) for name in ("size", "crop_size"))
    if crop > size:
        raise Found(where, "crop_size", crop).wrong(f"at most {size}, the size before")
    return crop / size


def _side(where: str, name: str, value: Any) -> int:
    sides = list(value.values()) if isinstance(value, Mapping) else [value]
    if not sides or any(type(side) is not int or side < 1 or side != sides[0] for side in sides):
        raise Found(where, name, value).wrong("one number of pixels")
    return sides[0]
