"""What stands beside a checkpoint: configurations, options of its training, of the caller.

A value is found under any of its names; the first place that has it counts. Errors say where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refimpl.conventions import ConfigError, ModelFileError, is_number
from refimpl.disk import read_text


class Found(NamedTuple):
    """A value and the place that has it."""

    where: str
    name: str
    value: Any

    def wrong(self, expected: str) -> ConfigError:
        return ConfigError(f"{self.where}: {self.name} is {self.value!r:.60}; expected {expected}")


class Said:
    """Values by name, of several places in order."""

    def __init__(self, places: Sequence[tuple[str, Mapping[str, Any]]]):
        self.places = list(places)

    def find(self, *names: str) -> Found | None:
        """The value under any of these names; null is no value."""
        for where, values in self.places:
            for name in names:
                if values.get(name) is not None:
                    return Found(where, name, values[name])
        return None

    def whole(self, *names: str) -> int | None:
        """A whole number of at least 1."""
        found = self.find(*names)
        if found is None:
            return None
        if isinstance(found.value, bool) or not isinstance(found.value, int) or found.value < 1:
            raise found.wrong("a whole number of at least 1")
        return found.value

    def number(self, *names: str) -> float | None:
        """Any real number."""
        found = self.find(*names)
        if found is None:
            return None
        if not is_number(found.value):
            raise found.wrong("a number")
        return float(found.value)

    def required(self, meaning: str, *names: str) -> int:
        """A whole number that no shape tells."""
        found = self.whole(*names)
        if found is None:
            raise ConfigError(
                f"{meaning} is not in the checkpoint, nor beside it; expected "
                f"{' or '.join(names)} in a JSON file, by --config"
            )
        return found

    def agree(self, tensor: str, value: Any, *names: str) -> None:
        """Compare a value that the shapes tell with what is said of it."""
        found = self.find(*names)
        if found is not None and found.value != value:
            raise found.wrong(f"{value!r}, as {tensor} has it")

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse what changes the network and cannot be held."""
        found = self.find(name)
        if found is not None and found.value not in allowed:
            raise found.wrong(f"{' or '.join(map(repr, allowed))}, refimpl has nothing else")

    def image_size(self) -> tuple[Found, tuple[int, int]] | None:
        """Rows and columns of images, said as a number, as (H, W) or as (channels, H, W)."""
        found = self.find("image_size", "img_size", "input_size")
        if found is None:
            return None
        value = found.value
        if isinstance(value, int):
            value = [value, value]
        sides = list(value)[-2:] if isinstance(value, (list, tuple)) else []
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise found.wrong("a side, or height and width")
        return found, (sides[0], sides[1])


def gather(
    checkpoint: Path,
    config: Path | None,
    args: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Said:
    """All places: the caller's options, a configuration, what the checkpoint's script was given.

    Without `config` it is the config.json beside the checkpoint; without `args` its args.json.
    """
    folder = checkpoint.parent
    path = config or folder / "config.json"
    said = _json(path) if config or path.is_file() else {}
    places = [("options", {key: value for key, value in options.items() if value is not None})]
    places += [(str(path), part) for part in _parts(said)]
    where = f"{checkpoint}: args"
    if not args and (folder / "args.json").is_file():
        where, args = str(folder / "args.json"), _json(folder / "args.json")
    # what timm's script hands on to the class is nested in what it was given
    parts = args.get("model_kwargs"), args
    places += [(where, part) for part in parts if part and isinstance(part, Mapping)]
    if (folder / "preprocessor_config.json").is_file():
        prepared = _json(folder / "preprocessor_config.json")
        places.append((str(folder / "preprocessor_config.json"), {"preprocessor": prepared}))
    return Said(places)


def _parts(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """timm's config.json has the arguments of its class, and of its data, one level down."""
    nested = [said.get(name) for name in ("model_args", "pretrained_cfg")]
    parts = [nested[0], said, nested[1]]
    return [part for part in parts if isinstance(part, Mapping)]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: found {type(found).__name__}; expected an object of fields")
    return found
