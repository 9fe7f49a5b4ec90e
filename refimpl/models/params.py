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
from refimpl.models.stage import Stage

Params = dict[str, Any]  # nested: a value is an array or again such a dict
Shape = tuple[int, ...]

BINARY = ("blocks.", "merges.")  # in binary networks the matrices below are binary, no others


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
    block, merging = _binary_block, _merging
    if config.block == "real":
        block, merging = _real_block, _real_merging
    found: dict[str, Shape] = {
        "patch_embed.weight": (C, config.channels, p, p),
        "patch_embed.bias": (C,),
    }
    if config.pool == "cls":
        found["cls_token"] = (1, 1, C)
    if config.window:
        found.update(_affine("embed_norm", C))
    else:
        found["pos_embed"] = (1, N, C)
    i = 0
    for s, stage in enumerate(config.stages):
        if s > 0:
            found.update(_below(f"merges.{s - 1}.", merging(config, stage)))
        below = block(config, stage)
        for _ in range(config.depths[s]):
            found.update(_below(f"blocks.{i}.", below))
            i += 1
    C = stage.dim
    found.update(_affine("norm", C))
    if config.decoder == "fpn":
        found.update(_pyramid(config))
        C = config.dim
    return {**found, **_linear("head", C, config.num_classes)}


def _below(prefix: str, found: dict[str, Shape]) -> dict[str, Shape]:
    return {f"{prefix}{path}": shape for path, shape in found.items()}


def _binary_block(config: Config, stage: Stage) -> dict[str, Shape]:
    C, hidden, N = stage.dim, config.mlp_ratio * stage.dim, stage.tokens
    found = _affine("norm1", C)
    for t in config.attention_inputs:
        found.update(_projection(f"attn.{t}", C, C, N, config))
    for t in config.attention_inputs:
        found[f"attn.{t}_move"] = (C,)
    found["attn.alpha"] = (stage.heads, 1, 1) if config.alpha_scope == "head" else ()
    if config.similarity == "haar":
        found["attn.band_weight"] = (2, stage.heads)
    found.update(_position_bias(stage))
    if config.attention == "differential":
        found.update({"attn.shortcut": (C,), "attn.neighbour": (C,)})
    found.update(_affine("attn.norm", C))
    found.update(_rprelu("attn.rprelu", C, N, config))
    found.update(_projection("attn.proj", C, C, N, config))
    if config.layer_scale:
        found.update({"scale1.alpha": (C,), "scale1.beta": (C,)})
    found.update(_affine("norm2", C))
    found.update(_projection("mlp.up", C, hidden, N, config))
    found.update(_projection("mlp.down", hidden, C, N, config))
    if config.layer_scale:
        found.update({"scale2.alpha": (C,), "scale2.beta": (C,)})
    return found


def _real_block(config: Config, stage: Stage) -> dict[str, Shape]:
    C, hidden = stage.dim, config.mlp_ratio * stage.dim
    return {
        **_affine("norm1", C),
        **_linear("attn.qkv", C, 3 * C),
        **_position_bias(stage),
        **_linear("attn.proj", C, C),
        **_affine("norm2", C),
        **_linear("mlp.fc1", C, hidden),
        **_linear("mlp.fc2", hidden, C),
    }


def _merging(config: Config, stage: Stage) -> dict[str, Shape]:
    """Patch merging, which leads to `stage`."""
    C = stage.dim
    return {**_affine("norm", 2 * C), **_projection("proj", 2 * C, C, stage.tokens, config)}


def _real_merging(config: Config, stage: Stage) -> dict[str, Shape]:
    return {**_affine("norm", 2 * stage.dim), "proj.weight": (stage.dim, 2 * stage.dim)}


def _pyramid(config: Config) -> dict[str, Shape]:
    """All levels have the channels of stage 0; the norm of the last one is the network's."""
    D, *narrower = (stage.dim for stage in config.stages)
    found: dict[str, Shape] = {}
    for s, C in enumerate((D, *narrower)):
        if s < len(narrower):
            found.update(_affine(f"decoder.{s}.norm", C))
        found.update(_linear(f"decoder.{s}.lateral", C, D))
        found.update({f"decoder.{s}.smooth.weight": (D, D, 3, 3), f"decoder.{s}.smooth.bias": (D,)})
    return found


def _position_bias(stage: Stage) -> dict[str, Shape]:
    if not stage.window:
        return {}
    return {"attn.position_bias": ((2 * stage.window - 1) ** 2, stage.heads)}


def _linear(path: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{path}.weight": (outputs, inputs), f"{path}.bias": (outputs,)}


def _projection(
    path: str, inputs: int, outputs: int, tokens: int, config: Config
) -> dict[str, Shape]:
    return {
        f"{path}.move": (inputs,),
        f"{path}.weight": (outputs, inputs),
        **_affine(f"{path}.norm", outputs),
        **_rprelu(f"{path}.rprelu", outputs, tokens, config),
    }


def _affine(path: str, channels: int) -> dict[str, Shape]:
    return {f"{path}.weight": (channels,), f"{path}.bias": (channels,)}


def _rprelu(path: str, channels: int, tokens: int, config: Config) -> dict[str, Shape]:
    found: dict[str, Shape] = {
        f"{path}.{name}": (channels,) for name in ("shift_in", "slope", "shift_out")
    }
    if config.rprelu == "token":
        found.update(
            dict.fromkeys((f"{path}.token_shift_in", f"{path}.token_shift_out"), (tokens,))
        )
    return found


def block_of(path: str) -> int:
    """The number of the block to which a parameter or a tap below "blocks.{i}." belongs."""
    return int(path.split(".")[1])


def real_matrices(config: Config) -> frozenset[str]:
    """Paths of the matrices and kernels of real layers: those that get weight decay [SPEC 7]."""
    return frozenset(
        path
        for path, shape in shapes(config).items()
        if path.endswith(".weight")
        and len(shape) > 1
        and not (config.block == "binary" and path.startswith(BINARY))
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
    constants = {"slope": 0.25, "band_weight": 0.5, "shortcut": 1.0}
    if path.endswith(("scale1.alpha", "scale2.alpha")):
        return np.full(shape, 0.1)
    if path.endswith("attn.alpha"):
        return np.full(shape, 1 / config.stage_of(block_of(path)).keys)
    if leaf in constants:
        return np.full(shape, constants[leaf])
    if leaf in ("cls_token", "pos_embed", "position_bias") or (leaf == "weight" and len(shape) > 1):
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
