"""The file of a model: safetensors with everything needed to use it [SPEC 7].

A latent file holds parameters under their dotted names; a packed one, made for the engine, holds
the two arrays of `packing.join`. `__metadata__` holds strings: `format` ("refimpl"),
`format_version`, `kind` ("latent" or "packed"), and as JSON `config`, `class_names`,
`preprocessing`. A card (`*.json`, same stem) beside the file repeats them for people, with figures
and sha256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import (
    FLOATS,
    ConfigError,
    ModelFileError,
    did_you_mean,
    is_lfs_pointer,
    lfs_error,
    require_finite,
)
from refimpl.data.preprocessing import Preprocessing
from refimpl.disk import write_atomically
from refimpl.models import architectures, cards, packing
from refimpl.models import params as parameters
from refimpl.models.arrays import InFile, header
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.vit import VisionTransformer

FORMAT_VERSION = "1"
SUFFIX = ".safetensors"
MANY = 1000  # arrays that a file may lack, and each is looked for by its name
KINDS = {"latent": "parameters, to train on", "packed": "bits for the engine, no latent weights"}


class ModelFile(NamedTuple):
    """What a latent file holds; see the module's docstring."""

    path: Path
    model: VisionTransformer  # with the preprocessing and class names of the file
    params: Params


class PackedFile(NamedTuple):
    """What a packed file holds; see the module's docstring."""

    path: Path
    model: VisionTransformer
    arrays: dict[str, np.ndarray]  # by the names of `packing.shapes`


def save(
    path: str | os.PathLike,
    model: VisionTransformer,
    params: Params,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write a latent model file, and its card where one is given; each whole or not at all.

    A card that lies there and is not written anew stays: its sha256 says whose it is.

    The class names and the preprocessing of the model are written with it; what is given here, the
    latter as JSON, takes their place. So `save(path, *load(name))` loses nothing. ConfigError where
    they do not fit the model, or the card is no JSON; ShapeError or DtypeError where the parameters
    are not the model's, NonFiniteError where one holds NaN or infinity; ModelFileError for a path
    without the suffix .safetensors, OSError from the disk.

    >>> import tempfile
    >>> model, params = load("didb_micro_mnist")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/copy.safetensors", model, params)
    ...     load(f"{folder}/copy.safetensors")[0].class_names[:3]
    ('0', '1', '2')
    """
    path = Path(as_text(path))
    flat = parameters.flatten(params)
    parameters.check(model.network.parameters, flat)
    for name, value in flat.items():
        require_finite(f"{path} not written", name, value)
    described = describe(model, class_names, preprocessing)
    _write(path, "latent", flat, described, card)


def save_packed(
    path: str | os.PathLike,
    model: VisionTransformer,
    params: Params,
    *,
    floats: str = "float32",
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write a packed model file from latent parameters, otherwise like `save`.

    `floats` is the dtype of what has no bits, "float32" or "float16". Errors as in
    `packing.pack`, too.
    """
    path = Path(as_text(path))
    arrays = packing.join(packing.pack(model.config, params, floats))
    described = describe(model, class_names, preprocessing)
    _write(path, "packed", arrays, described, card)


def describe(
    model: VisionTransformer,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect what a file says of its model, as JSON values; arguments and errors as `save`."""
    if class_names is not None:
        model = dataclasses.replace(model, class_names=class_names)
    if preprocessing is not None:
        model = dataclasses.replace(model, preprocessing=Preprocessing.from_json(preprocessing))
    names = model.class_names and list(model.class_names)
    prepared = model.preprocessing and model.preprocessing.to_json()
    return {"config": model.config.to_json(), "class_names": names, "preprocessing": prepared}


def _write(
    path: Path,
    kind: str,
    arrays: dict[str, np.ndarray],
    described: dict[str, Any],
    card: dict[str, Any] | None,
) -> None:
    if path.suffix != SUFFIX:
        raise ModelFileError(f"{path}: suffix {path.suffix!r}; expected {SUFFIX!r}")
    metadata = {"format": "refimpl", "format_version": FORMAT_VERSION, "kind": kind}
    metadata |= {key: json.dumps(value) for key, value in described.items()}
    data = to_bytes(arrays, metadata)
    if card is not None:  # made before anything is written: it may hold what is no JSON
        card = {**card, **described, "sha256": hashlib.sha256(data).hexdigest()}
        text = cards.to_bytes(card)
    write_atomically(path, data)
    if card is not None:
        write_atomically(cards.path_of(path), text)


def to_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Make a safetensors file; the same content always gives the same bytes."""
    from safetensors.numpy import save as serialise

    # some versions of safetensors write the memory of an array, whatever its strides
    data = serialise({k: np.array(v, order="C") for k, v in arrays.items()}, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    # safetensors writes the metadata in an order that changes from call to call
    header = json.loads(data[8:end]) | {"__metadata__": metadata}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def load(name_or_path: str | os.PathLike) -> tuple[VisionTransformer, Params]:
    """Load a shipped model's name, or the path of a file -> (model, params). Errors as `read`.

    The model has the preprocessing and the class names of its file.

    >>> model, params = load("didb_micro_mnist")
    >>> pixels = np.zeros((1, 28, 28), np.uint8)
    >>> model.predict(params, model.prepare(pixels)).shape
    (1, 10)
    """
    file = read(name_or_path)
    return file.model, file.params


def read(name_or_path: str | os.PathLike) -> ModelFile:
    """Read all that a latent file holds; ModelFileError names the file, what it has and should."""
    return _read(name_or_path, "latent")


def read_packed(name_or_path: str | os.PathLike) -> PackedFile:
    """Read all that a packed file holds, arrays as `packing.pack` gave them; errors as `read`."""
    return _read(name_or_path, "packed")


def read_config(name_or_path: str | os.PathLike) -> Config:
    """Find the configuration of an architecture's name, or of a file as `read_any`."""
    name = as_text(name_or_path)
    if name in architectures.NAMES:
        return architectures.named(name)
    return read_any(name).model.config


def read_any(name_or_path: str | os.PathLike) -> ModelFile | PackedFile:
    """Read a file of either kind; errors as `read`."""
    return _read(name_or_path, *KINDS)


def _read(name_or_path: str | os.PathLike, *kinds: str) -> Any:
    path = find(name_or_path)
    metadata, stored = _open(path)
    if metadata.get("format") != "refimpl":
        raise ModelFileError(f"{path}: no refimpl metadata; expected a file that refimpl wrote")
    _check_metadata(path, metadata, "format_version", (FORMAT_VERSION,))
    _check_metadata(path, metadata, "kind", kinds)
    model = _model(path, metadata)
    if metadata["kind"] == "latent":
        return ModelFile(path, model, _latent(path, model.config, stored))
    return PackedFile(path, model, _packed(path, model.config, stored))


def _model(path: Path, metadata: dict[str, str]) -> VisionTransformer:
    described = _json(path, metadata, "preprocessing")
    try:
        config = Config.from_json(_json(path, metadata, "config"))
        preprocessing = None if described is None else Preprocessing.from_json(described)
        return VisionTransformer(config, preprocessing, _json(path, metadata, "class_names"))
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from None


def _check_metadata(
    path: Path, metadata: dict[str, str], key: str, expected: tuple[str, ...]
) -> None:
    found = metadata.get(key)
    if found in expected:
        return
    meaning = f" ({KINDS[found]})" if key == "kind" and found in KINDS else ""
    wanted = " or ".join(map(repr, expected))
    raise ModelFileError(f"{path}: {key} {found!r}{meaning}; expected {wanted}")


def _latent(path: Path, config: Config, stored: dict[str, InFile]) -> Params:
    _check_arrays(path, config, stored)
    values = _values(path, stored)
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise ModelFileError(f"{path}: {name}: holds NaN or infinity; expected finite numbers")
    return parameters.unflatten({name: values[name] for name in parameters.shapes(config)})


def _packed(path: Path, config: Config, stored: dict[str, InFile]) -> dict[str, np.ndarray]:
    try:
        packing.check(config, stored)
        return packing.split(config, _values(path, stored))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


def shipped() -> list[str]:
    """Name the models that come with refimpl."""
    return sorted(Path(f.name).stem for f in _weights().iterdir() if f.name.endswith(SUFFIX))


def list_models(pattern: str = "*", *, trained: bool = False) -> list[str]:
    """List the names that a pattern such as "didb*" has: architectures, for `create_model`.

    trained: the trained models that come with refimpl instead, for `load`.

    >>> list_models("react_*y")
    ['react_tiny', 'react_swin_tiny']
    >>> list_models("didb*", trained=True)
    ['didb_cifar10', 'didb_micro_mnist']
    """
    return fnmatch.filter(shipped() if trained else architectures.NAMES, pattern)


def as_text(name_or_path: str | os.PathLike) -> str:
    """Give the name or path of a model as text; ModelFileError where it is neither."""
    try:
        text = os.fsdecode(name_or_path)
    except TypeError:
        text = ""
    if not text:
        raise ModelFileError(f"model: found {name_or_path!r:.60}; expected a name or a file's path")
    return text


def find(name_or_path: str | os.PathLike) -> Path:
    """Find the path of a shipped model's file, by its name, or of any file, by its path."""
    name = as_text(name_or_path)
    if name in shipped():
        return Path(str(_weights() / f"{name}{SUFFIX}"))
    path = Path(name)
    with _reading(path):  # the system may refuse to look, as at a name that is too long
        is_file, exists = path.is_file(), path.exists()
    if is_file:
        return path
    if exists and name not in architectures.NAMES:
        kind = "a folder" if path.is_dir() else "no regular file"
        raise ModelFileError(f"{name}: is {kind}; expected a model's name or its {SUFFIX} file")
    if name in architectures.NAMES:
        meant = did_you_mean(name, shipped())
        raise ModelFileError(f"{name}: an untrained architecture; expected trained weights{meant}")
    listing = ", ".join(shipped()) or "none is shipped"
    meant = did_you_mean(name, [*shipped(), *architectures.NAMES])
    raise ModelFileError(f"{name}: no such file or model; shipped models: {listing}{meant}")


def _weights() -> Any:
    """The folder of the package refimpl.weights, which an installation maps to weights/."""
    try:
        return resources.files("refimpl.weights")
    except ModuleNotFoundError:
        raise ModelFileError(
            "refimpl.weights is not installed; in a checkout run `pip install -e .`"
        ) from None


def _open(path: Path) -> tuple[dict[str, str], dict[str, InFile]]:
    with _reading(path):
        return header(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What can be wrong with a file, as a ModelFileError."""
    try:
        yield
    except ValueError as error:
        with open(path, "rb") as file:
            if is_lfs_pointer(file.read(128)):
                raise ModelFileError(lfs_error(path)) from None
        raise ModelFileError(f"{path}: not a readable safetensors file: {error}") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def _values(path: Path, found: Mapping[str, InFile]) -> dict[str, np.ndarray]:
    """The arrays, once it is known that the network has them."""
    with _reading(path):
        return {name: array.array() for name, array in found.items()}


def _json(path: Path, metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        raise ModelFileError(f"{path}: metadata {key!r} is missing or no JSON") from None


def _check_arrays(path: Path, config: Config, flat: dict[str, InFile]) -> None:
    count = sum(blocks for _, blocks in parameters.repeated(config))
    if count > 2 * len(flat) + MANY:  # before a list of all names is made of a hostile number
        raise ModelFileError(
            f"{path}: parameters are missing: {len(flat)} arrays for {config.num_blocks} blocks"
        )
    expected = parameters.shapes(config)
    if missing := [name for name in expected if name not in flat]:
        raise ModelFileError(
            f"{path}: {missing[0]}: missing; expected shape {expected[missing[0]]}"
        )
    dtype = flat[next(iter(expected))].dtype
    for name, array in flat.items():
        if name not in expected:
            raise ModelFileError(f"{path}: {name}: unknown parameter for this configuration")
        if array.shape != expected[name]:
            raise ModelFileError(f"{path}: {name}: shape {array.shape}; expected {expected[name]}")
        if array.dtype not in FLOATS or array.dtype != dtype:
            raise ModelFileError(
                f"{path}: {name}: {array.dtype}; expected float32 or float64 throughout"
            )
