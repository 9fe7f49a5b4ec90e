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
from typing import NamedTuple

import numpy as np

from refimpl.conventions import ModelFileError, NonFiniteError, require_choice, require_finite
from refimpl.models import params as parameters
from refimpl.models.arrays import InFile
from refimpl.models.binary import network
from refimpl.models.config import IMPORTED, Config
from refimpl.models.nodes import Parameter, Shape
from refimpl.models.params import Params
from refimpl.ops import weight_binarizer

FLOATS = ("float32", "float16")
STORED = {"bits": ("uint8",), "floats": FLOATS}  # arrays of a file: dtypes
WORD = 64  # bits to which a row is padded


class Stored(NamedTuple):
    """A packed array: its shape, and which of the two arrays of a file holds it."""

    shape: Shape
    part: str  # "bits" or "floats"


def binary_matrices(config: Config) -> frozenset[str]:
    """Name the matrices of which a packed file holds bits; none unless binarize="full"."""
    declared = network(config).parameters
    return frozenset(path for path, found in declared.items() if found.traits.binary)


def for_engine(config: Config) -> bool:
    """Say whether the engine runs it: blocks that are binary throughout, as [SPEC 6.1-6.7].

    What came with the networks of others [SPEC 6.8] it does not know.
    """
    return bool(binary_matrices(config)) and not imported_fields(config)


def imported_fields(config: Config) -> list[str]:
    """Name the fields of [SPEC 6.8] that a configuration uses."""
    used = [name for name, usual in IMPORTED.items() if getattr(config, name) != usual]
    return used + ["pool"] * (config.pool == "patches")


def extras(config: Config) -> bool:
    """Say whether the engine needs for it what is compiled for windows and decoders alone."""
    return config.window > 0 or config.decoder != "none"


def shapes(config: Config) -> dict[str, Shape]:
    """Give dotted name -> shape of every packed array, in the order in which a file holds them."""
    return {name: found.shape for name, found in _all_stored(config).items()}


def stored(parameter: Parameter) -> dict[str, Stored]:
    """Give name -> packed array of a parameter: bits and scales of a binary matrix, else one."""
    if not parameter.traits.binary:
        return {parameter.path: Stored(parameter.shape, "floats")}
    outputs, inputs = parameter.shape
    bits, scale = bits_and_scale(parameter.path)
    row = -(-inputs // WORD) * WORD // 8
    return {bits: Stored((outputs, row), "bits"), scale: Stored((outputs,), "floats")}


def pack(config: Config, params: Params, floats: str = "float32") -> dict[str, np.ndarray]:
    """Pack latent parameters -> arrays by dotted name, in the order of `shapes`.

    Signs and scales are computed in the dtype of the parameters, then rounded to `floats`.
    ShapeError or DtypeError where the parameters are not the configuration's; NonFiniteError,
    with the name, on NaN, infinity and what `floats` cannot hold.
    """
    require_choice("pack", "floats", floats, FLOATS)
    flat, declared = parameters.flatten(params), network(config).parameters
    parameters.check(declared, flat)
    packed: dict[str, np.ndarray] = {}
    for path, found in declared.items():
        require_finite("pack", path, flat[path])
        if found.traits.binary:
            centred, value = _binarized(path, flat[path])
            bits, scale = bits_and_scale(path)
            packed |= {bits: pack_rows(centred >= 0), scale: _cast(scale, value, floats)}
        else:
            packed[path] = _cast(path, flat[path], floats)
    return packed


def _binarized(path: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the signs are of, and the scales."""
    try:
        with np.errstate(all="ignore"):  # of absurd weights, whose sums no float holds
            centred, _, scale = weight_binarizer.binarize(weight)
    except NonFiniteError as error:
        raise NonFiniteError(error.message, path) from None
    return centred, scale


def pack_rows(bit: np.ndarray) -> np.ndarray:
    """Pack bool (..., K) -> uint8 (..., ceil(K / 64) * 8), the layout of every file [SPEC 1]."""
    padding = [(0, 0)] * (bit.ndim - 1) + [(0, -bit.shape[-1] % WORD)]
    return np.packbits(np.pad(bit, padding), axis=-1, bitorder="little")


def join(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join what `pack` gave -> the two flat arrays of a file, `bits` and `floats`."""
    bits, floats = (
        [array.ravel() for array in arrays.values() if array.dtype.name in dtypes]
        for dtypes in STORED.values()
    )
    empty = np.zeros(0, np.uint8)  # a network may have no binary matrix
    return {"bits": np.concatenate([empty, *bits]), "floats": np.concatenate(floats)}


def split(config: Config, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split the two flat arrays of a file -> views on them by dotted name, the inverse of `join`.

    ModelFileError where an array is missing, unknown, or of another dtype or length than the
    configuration says, where a padding bit is not 0, and on NaN or infinity.
    """
    check(config, given)
    arrays, begin = {}, {"bits": 0, "floats": 0}
    for name, (shape, part) in _all_stored(config).items():
        end = begin[part] + math.prod(shape)
        arrays[name] = given[part][begin[part] : end].reshape(shape)
        begin[part] = end
    _check_values(config, arrays)
    return arrays


def check(config: Config, given: Mapping[str, np.ndarray | InFile]) -> None:
    """Raise ModelFileError where arrays do not have the names, dtypes and shapes of `join`'s."""
    for key, length in _lengths(config).items():
        if key not in given:
            raise ModelFileError(f"{key}: missing; expected shape ({length},)")
        array, dtypes = given[key], STORED[key]
        if str(array.dtype) not in dtypes:
            raise ModelFileError(f"{key}: {array.dtype}; expected {' or '.join(dtypes)}")
        if array.shape != (length,):
            raise ModelFileError(f"{key}: shape {array.shape}; expected ({length},)")
    if unknown := sorted(set(given) - set(STORED)):
        raise ModelFileError(f"{unknown[0]}: unknown array; expected bits and floats")


def _check_values(config: Config, arrays: Mapping[str, np.ndarray]) -> None:
    declared = network(config).parameters
    for path in binary_matrices(config):
        (name, _), (_, inputs) = bits_and_scale(path), declared[path].shape
        if np.unpackbits(arrays[name], axis=1, bitorder="little")[:, inputs:].any():
            raise ModelFileError(f"{name}: a padding bit is 1; expected 0 from bit {inputs} on")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelFileError(f"{name}: holds NaN or infinity; expected finite numbers")


def _lengths(config: Config) -> dict[str, int]:
    """Length of the two arrays of a file."""
    found = dict.fromkeys(STORED, 0)
    for parameter, blocks in parameters.repeated(config):
        for shape, part in stored(parameter).values():
            found[part] += blocks * math.prod(shape)
    return found


def _all_stored(config: Config) -> dict[str, Stored]:
    declared = network(config).parameters.values()
    return {name: found for p in declared for name, found in stored(p).items()}


def bits_and_scale(path: str) -> tuple[str, str]:
    """Name the packed arrays of a binary matrix."""
    stem = path.removesuffix("weight")
    return f"{stem}bits", f"{stem}scale"


def _cast(name: str, value: np.ndarray, floats: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # found by the next line, with the name
        cast = np.asarray(value).astype(floats)
    if not np.isfinite(cast).all():
        largest = np.finfo(floats).max
        raise NonFiniteError(f"a value is beyond {floats}; expected at most {largest:g}", name)
    return cast
