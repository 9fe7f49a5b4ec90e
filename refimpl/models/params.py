"""Parameters: nested dicts of arrays with dotted names [SPEC 6.4], and their start [SPEC 6.6].

`shapes` is the one list of names and shapes; everything else that needs one asks it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.conventions import FLOATS, DtypeError, ShapeError, float_dtype
from refimpl.models.config import Config

Params = dict[str, Any]  # nested: a value is an array or again such a dict
Shape = tuple[int, ...]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dict -> {dotted path: array}, in the tree's order."""
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> Params:
    """{dotted path: array} -> nested dict, the inverse of `flatten`."""
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
    """Dotted path -> shape of every parameter of a network, in order of computation."""
    C, p, N = config.dim, config.patch_size, config.tokens
    found: dict[str, Shape] = {
        "patch_embed.weight": (C, config.channels, p, p),
        "patch_embed.bias": (C,),
    }
    if config.pool == "cls":
        found["cls_token"] = (1, 1, C)
    found["pos_embed"] = (1, N, C)
    block = _binary_block(config) if config.block == "binary" else _real_block(config)
    for i in range(config.depth):
        found.update({f"blocks.{i}.{path}": shape for path, shape in block.items()})
    found.update(_affine("norm", C))
    found.update({"head.weight": (config.num_classes, C), "head.bias": (config.num_classes,)})
    return found


def _binary_block(config: Config) -> dict[str, Shape]:
    C, hidden = config.dim, config.mlp_ratio * config.dim
    found = _affine("norm1", C)
    for t in config.attention_inputs:
        found.update(_projection(f"attn.{t}", C, C, config))
    for t in config.attention_inputs:
        found[f"attn.{t}_move"] = (C,)
    found["attn.alpha"] = (config.heads, 1, 1) if config.alpha_scope == "head" else ()
    if config.similarity == "haar":
        found["attn.band_weight"] = (2, config.heads)
    if config.attention == "differential":
        found.update({"attn.shortcut": (C,), "attn.neighbour": (C,)})
    found.update(_affine("attn.norm", C))
    found.update(_rprelu("attn.rprelu", C, config))
    found.update(_projection("attn.proj", C, C, config))
    if config.layer_scale:
        found.update({"scale1.alpha": (C,), "scale1.beta": (C,)})
    found.update(_affine("norm2", C))
    found.update(_projection("mlp.up", C, hidden, config))
    found.update(_projection("mlp.down", hidden, C, config))
    if config.layer_scale:
        found.update({"scale2.alpha": (C,), "scale2.beta": (C,)})
    return found


def _real_block(config: Config) -> dict[str, Shape]:
    C, hidden = config.dim, config.mlp_ratio * config.dim
    linears = {"attn.qkv": (3 * C, C), "attn.proj": (C, C)}
    found = _affine("norm1", C)
    for path, shape in linears.items():
        found.update({f"{path}.weight": shape, f"{path}.bias": shape[:1]})
    found.update(_affine("norm2", C))
    for path, shape in {"mlp.fc1": (hidden, C), "mlp.fc2": (C, hidden)}.items():
        found.update({f"{path}.weight": shape, f"{path}.bias": shape[:1]})
    return found


def _projection(path: str, inputs: int, outputs: int, config: Config) -> dict[str, Shape]:
    return {
        f"{path}.move": (inputs,),
        f"{path}.weight": (outputs, inputs),
        **_affine(f"{path}.norm", outputs),
        **_rprelu(f"{path}.rprelu", outputs, config),
    }


def _affine(path: str, channels: int) -> dict[str, Shape]:
    return {f"{path}.weight": (channels,), f"{path}.bias": (channels,)}


def _rprelu(path: str, channels: int, config: Config) -> dict[str, Shape]:
    found: dict[str, Shape] = {
        f"{path}.{name}": (channels,) for name in ("shift_in", "slope", "shift_out")
    }
    if config.rprelu == "token":
        tokens = (config.tokens,)
        found.update({f"{path}.token_shift_in": tokens, f"{path}.token_shift_out": tokens})
    return found


def real_matrices(config: Config) -> frozenset[str]:
    """Paths of the matrices of real layers: those that get weight decay [SPEC 7]."""
    real = ("patch_embed.weight", "head.weight")
    if config.block == "binary":
        return frozenset(real)
    return frozenset(
        path
        for path, shape in shapes(config).items()
        if path in real or (path.startswith("blocks.") and len(shape) == 2)
    )


def initialise(config: Config, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
    """Fresh parameters [SPEC 6.6]; the same generator gives the same ones."""
    dtype = np.dtype(dtype)
    if dtype not in FLOATS:
        raise DtypeError(f"init: dtype is {dtype}; expected float32 or float64")
    return unflatten(
        {path: _start(path, s, config, rng).astype(dtype) for path, s in shapes(config).items()}
    )


def _start(path: str, shape: Shape, config: Config, rng: np.random.Generator) -> np.ndarray:
    leaf = path.rsplit(".", 1)[-1]
    constants = {"slope": 0.25, "alpha": 1 / config.tokens, "band_weight": 0.5, "shortcut": 1.0}
    if path.endswith(("scale1.alpha", "scale2.alpha")):
        return np.full(shape, 0.1)
    if leaf in constants:
        return np.full(shape, constants[leaf])
    if leaf in ("cls_token", "pos_embed") or (leaf == "weight" and len(shape) > 1):
        return _truncated_normal(shape, rng, deviation=0.02)
    return np.ones(shape) if leaf == "weight" else np.zeros(shape)


def _truncated_normal(shape: Shape, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Normal, drawn again wherever it is beyond two standard deviations."""
    values = rng.standard_normal(math.prod(shape))
    while (far := np.abs(values) > 2).any():
        values[far] = rng.standard_normal(int(far.sum()))
    return (deviation * values).reshape(shape)


def check(config: Config, params: Params) -> np.dtype:
    """Names, shapes and the one dtype of parameters; returns the dtype."""
    flat, expected = flatten(params), shapes(config)
    for path in expected:
        if path not in flat:
            raise ShapeError(f"{path}: missing parameter; expected shape {expected[path]}")
    for path, value in flat.items():
        if path not in expected:
            raise ShapeError(f"{path}: unknown parameter for this configuration")
        if np.shape(value) != expected[path]:
            raise ShapeError(f"{path}: shape {np.shape(value)}; expected {expected[path]}")
    dtypes = {path: float_dtype(path, parameter=value) for path, value in flat.items()}
    dtype = dtypes["patch_embed.weight"]
    for path, found in dtypes.items():
        if found != dtype:
            raise DtypeError(f"{path}: {found}; expected {dtype}, as patch_embed.weight has it")
    return dtype
