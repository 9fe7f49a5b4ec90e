"""The file of a model: safetensors with everything needed to use it [SPEC 7].

Parameters stand under their dotted names. `__metadata__` holds strings: `format` ("refimpl"),
`format_version`, `kind` ("latent"), and as JSON `config`, `class_names`, `preprocessing`.
A card (`*.json`, same stem) beside the file repeats them for people, with figures and sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import FLOATS, ConfigError, ModelFileError, write_atomically
from refimpl.models import config as configs
from refimpl.models import params as parameters
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.vit import VisionTransformer

FORMAT_VERSION = "1"
SUFFIX = ".safetensors"


class ModelFile(NamedTuple):
    """What a latent file holds; see the module's docstring."""

    path: Path
    model: VisionTransformer
    params: Params
    class_names: list[str] | None
    preprocessing: dict[str, Any] | None


def save(
    path: str | os.PathLike,
    model: VisionTransformer,
    params: Params,
    *,
    class_names: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write a latent model file, and its card where one is given; each whole or not at all.

    ShapeError or DtypeError where the parameters are not the model's; OSError from the disk.
    """
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelFileError(f"{path}: suffix {path.suffix!r}; expected {SUFFIX!r}")
    parameters.check(model.config, params)
    described = {
        "config": model.config.to_json(),
        "class_names": class_names,
        "preprocessing": preprocessing,
    }
    metadata = {"format": "refimpl", "format_version": FORMAT_VERSION, "kind": "latent"}
    metadata |= {key: json.dumps(value) for key, value in described.items()}
    # some versions of safetensors write the memory of an array, whatever its strides
    flat = {k: np.array(v, order="C") for k, v in parameters.flatten(params).items()}
    data = to_bytes(flat, metadata)
    write_atomically(path, data)
    if card is not None:
        card = {**card, **described, "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        write_atomically(path.with_suffix(".json"), text.encode())


def load(name_or_path: str | os.PathLike) -> tuple[VisionTransformer, Params]:
    """A shipped model's name, or the path of a file -> (model, params). See `read`."""
    file = read(name_or_path)
    return file.model, file.params


def read(name_or_path: str | os.PathLike) -> ModelFile:
    """Everything a latent file holds; ModelFileError names the file, what it has and should."""
    path = find(name_or_path)
    metadata, flat = _open(path)
    if metadata.get("format") != "refimpl":
        raise ModelFileError(f"{path}: no refimpl metadata; expected a file that refimpl wrote")
    for key, expected in (("format_version", FORMAT_VERSION), ("kind", "latent")):
        if metadata.get(key) != expected:
            raise ModelFileError(f"{path}: {key} {metadata.get(key)!r}; expected {expected!r}")
    try:
        config = Config.from_json(_json(path, metadata, "config"))
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from None
    _check_arrays(path, config, flat)
    class_names = _json(path, metadata, "class_names")
    _check_class_names(path, config, class_names)
    ordered = {name: flat[name] for name in parameters.shapes(config)}
    params = parameters.unflatten(ordered)
    preprocessing = _json(path, metadata, "preprocessing")
    return ModelFile(path, VisionTransformer(config), params, class_names, preprocessing)


def shipped() -> list[str]:
    """Names of the models that come with refimpl."""
    return sorted(Path(f.name).stem for f in _weights().iterdir() if f.name.endswith(SUFFIX))


def find(name_or_path: str | os.PathLike) -> Path:
    """The path of a shipped model's file, by its name, or of any file, by its path."""
    name = os.fspath(name_or_path)
    if name in shipped():
        return Path(str(_weights() / f"{name}{SUFFIX}"))
    path = Path(name)
    if path.is_file():
        return path
    if name in configs.NAMES:
        raise ModelFileError(f"{name}: an untrained architecture; expected trained weights")
    listing = ", ".join(shipped()) or "none is shipped"
    raise ModelFileError(f"{name}: no such file or model; shipped models: {listing}")


def _weights() -> Any:
    """The folder of the package refimpl.weights, which an installation maps to weights/."""
    try:
        return resources.files("refimpl.weights")
    except ModuleNotFoundError:
        raise ModelFileError(
            "refimpl.weights is not installed; in a checkout run `pip install -e .`"
        ) from None


def _open(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"{path}: not a readable safetensors file: {reason}") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def _json(path: Path, metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError):
        raise ModelFileError(f"{path}: metadata {key!r} is missing or no JSON") from None


def _check_class_names(path: Path, config: Config, names: Any) -> None:
    if names is None:
        return
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelFileError(f"{path}: class_names is {names!r:.80}; expected a list of strings")
    if len(names) != config.num_classes:
        raise ModelFileError(f"{path}: {len(names)} class names; expected {config.num_classes}")


def _check_arrays(path: Path, config: Config, flat: dict[str, np.ndarray]) -> None:
    if config.depth > len(flat):  # before a list of all names is made of a hostile number
        raise ModelFileError(
            f"{path}: parameters are missing: {len(flat)} arrays for {config.depth} blocks"
        )
    expected = parameters.shapes(config)
    if missing := [name for name in expected if name not in flat]:
        raise ModelFileError(
            f"{path}: {missing[0]}: missing; expected shape {expected[missing[0]]}"
        )
    dtype = flat["head.weight"].dtype
    for name, array in flat.items():
        if name not in expected:
            raise ModelFileError(f"{path}: {name}: unknown parameter for this configuration")
        if array.shape != expected[name]:
            raise ModelFileError(f"{path}: {name}: shape {array.shape}; expected {expected[name]}")
        if array.dtype not in FLOATS or array.dtype != dtype:
            raise ModelFileError(
                f"{path}: {name}: {array.dtype}; expected float32 or float64 throughout"
            )
        if not np.isfinite(array).all():
            raise ModelFileError(f"{path}: {name}: holds NaN or infinity; expected finite numbers")
