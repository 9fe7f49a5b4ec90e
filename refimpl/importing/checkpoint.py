"""A checkpoint of another library as one of our networks [SPEC 6.8]."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import ConfigError, DataError, ModelFileError, shown
from refimpl.data import class_names
from refimpl.importing import containers, prepared, said
from refimpl.importing.families import Family, Tensors, family_of
from refimpl.models import Config, VisionTransformer, unflatten
from refimpl.models.nodes import Parameter
from refimpl.models.params import Params


class Imported(NamedTuple):
    """A checkpoint that was read."""

    family: str
    model: VisionTransformer
    params: Params
    missing: list[str]  # of the preprocessing; it is None then


def load_checkpoint(
    path: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    classes: str | os.PathLike | None = None,
    **options: Any,
) -> tuple[VisionTransformer, Params]:
    """Read a network that timm, transformers, Swin's or BinaryViT's code saved -> (model, params).

    path: a .safetensors, with PyTorch installed also a .pth, .pt or .bin, or a folder of one.
    config: JSON that says what no shape does (heads, bits of weights), by default the config.json
    beside it; classes: a file of class names, one a line or JSON. options: `mean`, `std`, `crop`,
    `resample`, `size`, in the place of what the configuration says. The model's `preprocessing` is
    None where nobody says it. Parameters are float32, or float64 where a tensor is. ModelFileError,
    ConfigError or DataError name the file and the first key or field that does not fit.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"fc.weight": np.ones((2, 2))}, f"{folder}/model.safetensors")
    ...     load_checkpoint(f"{folder}/model.safetensors")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    refimpl.conventions.ModelFileError: ...
    """
    found = read(path, config=config, classes=classes, **options)
    return found.model, found.params


def read(
    path: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    classes: str | os.PathLike | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Imported:
    """`load_checkpoint`, with what else is known; arguments and errors are the same."""
    if unknown := set(options) - set(prepared.OPTIONS):
        raise ConfigError(f"{min(unknown)}: unknown; expected {', '.join(prepared.OPTIONS)}, size")
    container = containers.read(Path(path))
    beside = Path(config) if config is not None else None
    facts = said.gather(container.path, beside, container.args, {"image_size": size})
    try:
        family = family_of(list(container.arrays))
        originals = _originals(container.arrays, family)
        tensors = Tensors({name: container.arrays[key] for name, key in originals.items()})
        network = Config(**family.config(tensors, facts))
        flat = _parameters(family, network, tensors, originals)
        images, missing = prepared.preprocessing(facts, network, options)
        names = _class_names(classes, facts, network.num_classes)
    except ConfigError as error:
        raise ModelFileError(f"{container.path}: {error}") from None
    model = VisionTransformer(network, images, names)
    return Imported(family.name, model, unflatten(flat), missing)


def translate(
    family: Family, config: Config, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays by the names of a family -> by ours: parameters, or their gradients."""
    tensors = Tensors({_canonical(key, family): value for key, value in arrays.items()})
    found = {}
    for path in VisionTransformer(config).network.parameters:
        keys = family.keys(path, config, tensors)
        if keys and all(key in tensors for key in keys):
            found[path] = _join([tensors.arrays[key] for key in keys])
    return found


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Queries, keys and values, one below the other; a single array as it is."""
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _originals(keys: Iterable[str], family: Family) -> dict[str, str]:
    """The name by which a family goes -> the key as it is in the file."""
    found: dict[str, str] = {}
    for key in keys:
        name = _canonical(key, family)
        if name in found:
            raise ConfigError(f"{key}: another name of {found[name]}; expected one of the two")
        found[name] = key
    return found


def _canonical(key: str, family: Family) -> str:
    for pattern, name in family.aliases:
        key = re.sub(pattern, name, key)
    return key


def _parameters(
    family: Family, config: Config, tensors: Tensors, originals: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Every parameter of the network, from keys that are all used."""
    declared = VisionTransformer(config).network.parameters
    made_of = {path: family.keys(path, config, tensors) for path in declared}
    used = {key for keys in made_of.values() for key in keys}
    for path, parameter in declared.items():  # before any value is in memory
        _check_shapes(parameter, made_of[path], tensors, originals)
    for key in tensors.arrays:
        if key not in used and not re.search(family.ignored, key):
            raise ConfigError(f"{originals[key]}: no place for it in a network of {family.name}")
    flat = {
        path: _parameter(parameter, made_of[path], tensors, originals)
        for path, parameter in declared.items()
    }
    wide = any(array.dtype == np.float64 for array in flat.values())
    return {path: array.astype(np.float64 if wide else np.float32) for path, array in flat.items()}


def _shape(parameter: Parameter, keys: Sequence[str]) -> tuple[int, ...]:
    """Of each of the tensors that are joined to a parameter."""
    shape = parameter.shape
    return (shape[0] // len(keys), *shape[1:]) if len(keys) > 1 else shape


def _check_shapes(
    parameter: Parameter, keys: Sequence[str], tensors: Tensors, originals: Mapping[str, str]
) -> None:
    shape = _shape(parameter, keys)
    for key in keys:
        if key not in tensors:
            raise ConfigError(f"{key}: missing; expected shape {shape}")
        found = tensors.arrays[key].shape
        if found != shape and not (shape == () and math.prod(found) == 1):
            raise ConfigError(f"{originals[key]}: shape {found}; expected {shape}")


def _parameter(
    parameter: Parameter, keys: Sequence[str], tensors: Tensors, originals: Mapping[str, str]
) -> np.ndarray:
    if not keys:
        return np.full(parameter.shape, parameter.start, np.float32)
    joined = []
    for key in keys:
        array = containers.values(tensors.arrays[key])
        if array.dtype.kind != "f":
            raise ConfigError(f"{originals[key]}: {array.dtype}; expected floats")
        if not np.isfinite(array).all():
            raise ConfigError(f"{originals[key]}: holds NaN or infinity; expected finite numbers")
        if parameter.role == "running_variance" and (array < 0).any():
            raise ConfigError(f"{originals[key]}: holds a negative variance; expected none")
        if parameter.role == "alpha" and float(array.min()) < 1e-5:
            raise ConfigError(f"{originals[key]}: {array.min():g}; expected at least 1e-05")
        joined.append(array.reshape(_shape(parameter, keys)))
    return _join(joined)


# --- class names ----------------------------------------------------------------------------------


def _class_names(
    path: str | os.PathLike | None, facts: said.Said, count: int
) -> tuple[str, ...] | None:
    """Names from a file, else from the configuration; those that nobody chose are none."""
    if path is not None:
        names = _of_file(Path(path))
    else:
        found = facts.find("id2label")
        if found is None or not isinstance(found.value, Mapping):
            return None
        names = _in_order(found.where, found.value)
        if names == [f"LABEL_{i}" for i in range(len(names))]:
            return None
    if len(names) != count:
        raise DataError(f"{path}: {len(names)} class names; expected {count}, one a class")
    return class_names.distinct([class_names.composed(name) for name in names], range(count))


def _of_file(path: Path) -> list[str]:
    text = class_names.text(path)
    if path.suffix.lower() != ".json":
        return [_plain(path, line.strip()) for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if isinstance(found, Mapping):
        return _in_order(str(path), found)
    if not isinstance(found, list):
        raise DataError(f"{path}: found {type(found).__name__}; expected a list of names")
    return [_plain(path, name) for name in found]


def _in_order(where: str, found: Mapping[str, Any]) -> list[str]:
    """{"0": name, "1": name …} -> names."""
    wanted = [str(i) for i in range(len(found))]
    if missing := [key for key in wanted if key not in found]:
        raise DataError(f"{where}: no name of class {missing[0]}; expected all from 0 on")
    return [_plain(where, found[key]) for key in wanted]


def _plain(where: object, name: Any) -> str:
    if not isinstance(name, str) or not name or shown(name) != name:
        raise DataError(f"{where}: found the name {name!r:.40}, expected printable text")
    return name
