"""Packed parameters: bits and scales instead of binary matrices [SPEC 1, 7].

`pack` gives arrays by dotted name. Of a binary matrix `<path>.weight` (O, I) they hold
`<path>.bits`, uint8 (O, ceil(I / 64) * 8), and `<path>.scale` (O,); every other parameter keeps
its name. Names, shapes and their order depend on the configuration alone: see `shapes`.

A file holds them in two arrays, `bits` and `floats` (`join`, `split`): a network has so many
short vectors that an entry for each would make the header a fifth of a small model's file.

>>> pack_rows(np.array([[True, False, True]]))       # 1 + 4, least significant bit first
array([[5, 0, 0, 0, 0, 0, 0, 0]], dtype=uint8)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refimpl.conventions import ModelFileError, NonFiniteError, require_choice, require_finite
from refimpl.models import params as parameters
from refimpl.models.config import Config
from refimpl.models.params import Params, Shape
from refimpl.ops import weight_binarizer

FLOATS = ("float32", "float16")
STORED = {"bits": ("uint8",), "floats": FLOATS}  # arrays of a file: dtypes
WORD = 64  # bits to which a row is padded


def binary_matrices(config: Config) -> frozenset[str]:
    """Paths of the matrices of which a packed file holds bits; none unless binarize="full"."""
    if config.block == "real" or config.binarize != "full":
        return frozenset()
    return frozenset(
        path
        for path, shape in parameters.shapes(config).items()
        if path.startswith(parameters.BINARY) and path.endswith(".weight") and len(shape) == 2
    )


def for_engine(config: Config) -> bool:
    """Whether the engine runs it: a network whose blocks are binary throughout."""
    return bool(binary_matrices(config))


def extras(config: Config) -> bool:
    """Whether the engine needs for it what is compiled for windows and decoders alone."""
    return config.window > 0 or config.decoder != "none"


def shapes(config: Config) -> dict[str, Shape]:
    """Dotted name -> shape of every packed array, in the order in which a file holds them."""
    binary = binary_matrices(config)
    found: dict[str, Shape] = {}
    for path, shape in parameters.shapes(config).items():
        if path in binary:
            outputs, inputs = shape
            found[_sibling(path, "bits")] = (outputs, -(-inputs // WORD) * WORD // 8)
            found[_sibling(path, "scale")] = (outputs,)
        else:
            found[path] = shape
    return found


def pack(config: Config, params: Params, floats: str = "float32") -> dict[str, np.ndarray]:
    """Latent parameters -> packed arrays by dotted name, in the order of `shapes`.

    Signs and scales are computed in the dtype of the parameters, then rounded to `floats`.
    ShapeError or DtypeError where the parameters are not the configuration's; NonFiniteError,
    with the name, on NaN, infinity and what `floats` cannot hold.
    """
    require_choice("pack", "floats", floats, FLOATS)
    parameters.check(config, params)
    flat, binary = parameters.flatten(params), binary_matrices(config)
    packed: dict[str, np.ndarray] = {}
    for path in parameters.shapes(config):
        require_finite("pack", path, flat[path])
        if path in binary:
            centred, _, scale = weight_binarizer.binarize(flat[path])
            packed[_sibling(path, "bits")] = pack_rows(centred >= 0)
            packed[_sibling(path, "scale")] = _cast(_sibling(path, "scale"), scale, floats)
        else:
            packed[path] = _cast(path, flat[path], floats)
    return packed


def pack_rows(bit: np.ndarray) -> np.ndarray:
    """bool (..., K) -> uint8 (..., ceil(K / 64) * 8), the bit layout of every file [SPEC 1]."""
    padding = [(0, 0)] * (bit.ndim - 1) + [(0, -bit.shape[-1] % WORD)]
    return np.packbits(np.pad(bit, padding), axis=-1, bitorder="little")


def join(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `pack` gave -> the two flat arrays of a file, `bits` and `floats`."""
    bits = [array.ravel() for name, array in arrays.items() if _store(name) == "bits"]
    floats = [array.ravel() for name, array in arrays.items() if _store(name) == "floats"]
    empty = np.zeros(0, np.uint8)  # a network may have no binary matrix
    return {"bits": np.concatenate([empty, *bits]), "floats": np.concatenate(floats)}


def split(config: Config, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The two flat arrays of a file -> views on them by dotted name, the inverse of `join`.

    ModelFileError where an array is missing, unknown, or of another dtype or length than the
    configuration says, where a padding bit is not 0, and on NaN or infinity.
    """
    _check_stored(config, stored)
    arrays, begin = {}, {"bits": 0, "floats": 0}
    for name, shape in shapes(config).items():
        key = _store(name)
        end = begin[key] + math.prod(shape)
        arrays[name] = stored[key][begin[key] : end].reshape(shape)
        begin[key] = end
    _check_values(config, arrays)
    return arrays


def _check_stored(config: Config, stored: Mapping[str, np.ndarray]) -> None:
    for key, length in _lengths(config).items():
        if key not in stored:
            raise ModelFileError(f"{key}: missing; expected shape ({length},)")
        array, dtypes = stored[key], STORED[key]
        if array.dtype.name not in dtypes:
            raise ModelFileError(f"{key}: {array.dtype}; expected {' or '.join(dtypes)}")
        if array.shape != (length,):
            raise ModelFileError(f"{key}: shape {array.shape}; expected ({length},)")
    if unknown := sorted(set(stored) - set(STORED)):
        raise ModelFileError(f"{unknown[0]}: unknown array; expected bits and floats")


def _check_values(config: Config, arrays: Mapping[str, np.ndarray]) -> None:
    latent = parameters.shapes(config)
    for path in binary_matrices(config):
        name, inputs = _sibling(path, "bits"), latent[path][1]
        if np.unpackbits(arrays[name], axis=1, bitorder="little")[:, inputs:].any():
            raise ModelFileError(f"{name}: a padding bit is 1; expected 0 from bit {inputs} on")
    for name, array in arrays.items():
        if _store(name) == "floats" and not np.isfinite(array).all():
            raise ModelFileError(f"{name}: holds NaN or infinity; expected finite numbers")


def _lengths(config: Config) -> dict[str, int]:
    """Length of the two arrays of a file."""

    def count(depths: list[int]) -> dict[str, int]:
        found = {"bits": 0, "floats": 0}
        for name, shape in shapes(config.with_depths(depths)).items():
            found[_store(name)] += math.prod(shape)
        return found

    # by arithmetic: a hostile file may say any depth, and a list of all names would be as long
    ones = [1] * len(config.depths)
    one = count(ones)
    total = dict(one)
    for s, depth in enumerate(config.depths):
        two = count([*ones[:s], 2, *ones[s + 1 :]])
        for key in total:
            total[key] += (depth - 1) * (two[key] - one[key])
    return total


def _store(name: str) -> str:
    """The array of a file that holds the packed array of this name."""
    return "bits" if name.endswith(".bits") else "floats"


def _sibling(path: str, leaf: str) -> str:
    return f"{path.removesuffix('weight')}{leaf}"


def _cast(name: str, value: np.ndarray, floats: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # found by the next line, with the name
        cast = np.asarray(value).astype(floats)
    if not np.isfinite(cast).all():
        largest = np.finfo(floats).max
        raise NonFiniteError(f"a value is beyond {floats}; expected at most {largest:g}", name)
    return cast
