"""Parameters: nested dicts of arrays with dotted names [SPEC 6.4], and their start [SPEC 6.6].

Order never matters: they go by name. What there is, and what kind each is, the network declares.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refimpl.conventions import FLOATS, DtypeError, ShapeError, float_dtype
from refimpl.models.binary import network
from refimpl.models.config import Config
from refimpl.models.nodes import Parameter, Shape

Params = dict[str, Any]  # nested: a value is an array or again such a dict
Declared = Mapping[str, Parameter]  # by path, as `Network.parameters`


def flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flatten a nested dict to {dotted path: array}, in its order; ShapeError if one comes twice.

    DtypeError for what is no dict.

    >>> flatten({"head": {"weight": np.ones((10, 64)), "bias": np.zeros(10)}}).keys()
    dict_keys(['head.weight', 'head.bias'])
    """
    _require_dict(tree)
    flat: dict[str, np.ndarray] = {}
    _flatten(tree, "", flat)
    return flat


def _require_dict(given: Any) -> None:
    if not isinstance(given, Mapping):
        raise DtypeError(f"params is {type(given).__name__}; expected a dict of arrays")


def _flatten(tree: Mapping[str, Any], prefix: str, flat: dict[str, np.ndarray]) -> None:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        # an array first: to ask for a Mapping takes longer than all else here
        if not isinstance(value, np.ndarray) and isinstance(value, Mapping):
            _flatten(value, f"{path}.", flat)
        elif path in flat:
            raise ShapeError(f"{path}: given twice; expected one value of a parameter")
        else:
            flat[path] = value


def unflatten(flat: Mapping[str, np.ndarray]) -> Params:
    """Nest {dotted path: array} -> nested dict, the inverse of `flatten`.

    ShapeError where a path is a parameter and a group of them, DtypeError for what is no dict.

    >>> unflatten({"head.weight": np.ones((2, 1)), "head.bias": np.zeros(2)})["head"]["bias"]
    array([0., 0.])
    """
    _require_dict(flat)
    tree: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ShapeError(f"{path}: {key!r} is a parameter already; expected a group")
        if leaf in node:
            raise ShapeError(f"{path}: is a group of parameters already; expected one parameter")
        node[leaf] = value
    return tree


def shapes(config: Config) -> dict[str, Shape]:
    """Give path -> shape of every parameter of a network, in the order of files [SPEC 6.4]."""
    return {path: found.shape for path, found in network(config).parameters.items()}


def repeated(config: Config) -> Iterator[tuple[Parameter, int]]:
    """Give every parameter of one block a stage, and how many blocks have it; of others that is 1.

    For sums over all: a hostile file may say any depth, and a list would be as long.
    """
    for found in network(config.with_depths([1] * len(config.depths))).parameters.values():
        yield found, 1 if found.block is None else config.depths[found.block]


def decayed(declared: Declared) -> frozenset[str]:
    """Name the matrices and kernels of real layers: those that get weight decay [SPEC 7]."""
    return frozenset(path for path, found in declared.items() if found.traits.decayed)


def initialise(declared: Declared, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
    """Draw fresh parameters of a network [SPEC 6.6]; the same generator gives the same ones."""
    dtype = require_float("init", dtype)
    fresh = {path: _start(found, rng).astype(dtype) for path, found in declared.items()}
    return unflatten(fresh)


def require_float(op: str, dtype: Any) -> np.dtype:
    """Give the type of parameters that `dtype` stands for; DtypeError where it is none."""
    with contextlib.suppress(TypeError):
        dtype = np.dtype(dtype)
        if dtype in FLOATS:
            return dtype
    raise DtypeError(f"{op}: dtype is {dtype}; expected float32 or float64")


def _start(parameter: Parameter, rng: np.random.Generator) -> np.ndarray:
    if parameter.start is None:
        return _truncated_normal(parameter.shape, rng, deviation=0.02)
    return np.full(parameter.shape, parameter.start)


def _truncated_normal(shape: Shape, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Normal, drawn again wherever it is beyond two standard deviations."""
    values = rng.standard_normal(math.prod(shape))
    while (far := np.abs(values) > 2).any():
        values[far] = rng.standard_normal(int(far.sum()))
    return (deviation * values).reshape(shape)


def draw(declared: Declared, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw random parameters that keep every threshold busy, float64 by path.

    Unlike fresh ones no move, shift or bias is 0, signs are mixed, and probabilities lie on both
    sides of alpha / 2: few values are ties [SPEC 6.6].
    """
    return {path: _drawn(found, rng) for path, found in declared.items()}


def _drawn(parameter: Parameter, rng: np.random.Generator) -> np.ndarray:
    role, shape = parameter.role, parameter.shape
    normal = np.asarray(rng.standard_normal(shape))
    if role == "alpha":  # the mean probability is 1 / N, its start
        return np.asarray(rng.uniform(0.6, 2.0, shape)) * parameter.start
    if role == "running_variance":
        return np.asarray(rng.uniform(0.5, 2.0, shape))
    if role in ("matrix", "kernel"):
        return normal / math.sqrt(math.prod(shape[1:]))
    if parameter.start is None:
        return (0.7 if role in ("binary_matrix", "latent_matrix") else 1.0) * normal
    center = 1.0 if role == "layer_scale" else parameter.start
    return center + 0.3 * normal


def check(declared: Declared, flat: Mapping[str, np.ndarray]) -> np.dtype:
    """Compare names, shapes and the one dtype of parameters by path; return the dtype."""
    for path, expected in declared.items():
        if path not in flat:
            raise ShapeError(f"{path}: missing parameter; expected shape {expected.shape}")
    for path, value in flat.items():
        if path not in declared:
            raise ShapeError(f"{path}: unknown parameter for this configuration")
        if np.shape(value) != declared[path].shape:
            raise ShapeError(f"{path}: shape {np.shape(value)}; expected {declared[path].shape}")
    first = next(iter(declared))
    dtype = float_dtype(first, parameter=flat[first])
    for path, value in flat.items():
        if isinstance(value, np.ndarray) and value.dtype == dtype:
            continue
        if (found := float_dtype(path, parameter=value)) != dtype:
            raise DtypeError(f"{path}: {found}; expected {dtype}, as {first} has it")
    return dtype
