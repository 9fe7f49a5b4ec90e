"""The card beside a model's file: what the file says, for people, with figures and sha256.

    {..., "config": …, "class_names": …, "preprocessing": …, "sha256": …, "evaluation": {...}}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from refimpl import disk
from refimpl.conventions import ConfigError, ModelFileError
from refimpl.disk import read_text, write_atomically


def path_of(model: Path) -> Path:
    """Name the card of a model's file."""
    return model.with_suffix(".json")


def to_bytes(card: dict[str, Any]) -> bytes:
    """Write a card as JSON; ConfigError names what JSON does not know, such as a Path or NaN.

    Names that are no UTF-8 are kept as escapes, which `read` turns back.
    """
    try:
        text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"card: {error}; expected JSON values") from None
    return f"{text}\n".encode("utf-8", "backslashreplace")


def read(model: Path) -> dict[str, Any]:
    """Read the card beside a model's file; ModelFileError where it is none."""
    path = path_of(model)
    try:
        card = json.loads(read_text(path), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or error  # that of an OSError names the file again
        raise ModelFileError(f"{path}: cannot read the card of the model: {what}") from None
    if not isinstance(card, dict):
        raise ModelFileError(f"{path}: found {type(card).__name__}, expected an object")
    return card


def _refuse(constant: str) -> None:
    """NaN and infinities, which Python would take for JSON."""
    raise ValueError(f"{constant} is no number of JSON")


def evaluation(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take the figures of an evaluation out of a card, {} where it has none.

    ModelFileError, with the card's `path`, where they are no figures.
    """
    found = card.get("evaluation")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: evaluation is {found!r:.40}, expected an object or null")
    for name, kinds in (("count", int), ("top1", (int, float)), ("mean_iou", (int, float))):
        value = found.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ModelFileError(f"{path}: evaluation: {name} is {value!r:.40}, expected a number")
    return found


def number(model: Path, *keys: str) -> float:
    """Take one number out of a model's card, by its keys; ModelFileError where there is none."""
    found: Any = read(model)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        what = ": ".join(keys)
        raise ModelFileError(f"{path_of(model)}: {what} is {found!r:.40}, expected a number")
    return found


def own(model: Path, count: int) -> dict[str, Any]:
    """Read the card of these very weights, to write figures of `count` images into it.

    ModelFileError where it has the sha256 of others (a card without one may be anybody's, and is
    taken), and where it has figures of more images: they are worth more; OutputError where it
    cannot be written.
    """
    card, path = read(model), path_of(model)
    disk.require_free(path, overwrite=True)
    found, expected = card.get("sha256"), _digest(model)
    if found is not None and found != expected:
        raise ModelFileError(
            f"{path}: is the card of other weights: sha256 is {found!r:.20}, expected that of "
            f"{model}, {expected!r:.20}"
        )
    before = evaluation(card, path).get("count") or 0
    if count < before:
        raise ModelFileError(
            f"{path}: has figures of {before:,} images, found {count:,}; "
            "expected as many, or a card without its evaluation"
        )
    return card


def remove_stale(model: Path) -> bool:
    """Delete the card beside a model's file where it has the sha256 of other weights.

    Returns whether it did: a file without a sha256 is nobody's card, and stays.
    """
    try:
        found = read(model).get("sha256")
    except ModelFileError:
        return False
    stale = isinstance(found, str) and found != _digest(model)
    if stale:
        path_of(model).unlink()
    return stale


def _digest(model: Path) -> str:
    return hashlib.sha256(model.read_bytes()).hexdigest()


def record(model: Path, found: Any, data: str) -> Path:
    """Write an evaluation into the card beside a model's file; `data` says on what it was made.

    found: an Evaluation, or another dataclass of JSON values. Returns the card's path.
    ModelFileError as `own`.
    """
    card, path = own(model, found.count), path_of(model)
    card["evaluation"] = {"data": data, **dataclasses.asdict(found)}
    write_atomically(path, to_bytes(card))
    return path
