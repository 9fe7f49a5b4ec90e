"""A packed network as text that the page's engine reads: its list of nodes, its bits and floats.

The list is the network's own [SPEC 6]; `assets/engine.js` has a function for each operation in it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.conventions import ConfigError
from refimpl.models import binary, packing
from refimpl.models.config import Config
from refimpl.models.nodes import Network, Node

OPS = (
    *("add", "band_sum", "bands", "batch_norm", "binary_linear", "boolean_attention"),
    *("box", "class_token", "differential", "divide", "drop_class_token", "fit", "identity"),
    *("layer_norm", "layer_scale", "linear", "matmul", "merge_heads", "neighbours"),
    *("patch_embed", "pool", "position_embedding", "rescale", "rprelu", "shift", "sign"),
    *("softmax", "split_heads", "stop_gradient"),
)
EXPECTED = "expected a binary classifier without windows"


def export(config: Config, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A configuration and what `packing.pack` gave -> JSON values for the engine of the page.

    Bits and floats are base64 of the two arrays of a packed file [SPEC 1], the floats as float32.
    ConfigError names the first node whose operation the engine does not have.
    """
    network = binary.network(config)
    for node in network.nodes:
        _require_known(network, node)
    stored = packing.join({name: _as_float32(array) for name, array in arrays.items()})
    parameters = network.parameters.values()
    return {
        "nodes": [_written(node) for node in network.nodes],
        "parameters": [[p.path, p.shape, p.traits.binary] for p in parameters],
        "output": network.output,
        **{part: base64.b64encode(array.tobytes()).decode() for part, array in stored.items()},
    }


def _require_known(network: Network, node: Node) -> None:
    what = f"{node.name}: found {node.op}"
    if node.op not in OPS:
        raise ConfigError(f"{what}, which the page cannot run; {EXPECTED}")
    if (found := node.attributes.get("binarize", "full")) != "full":
        raise ConfigError(f"{what} with binarize={found!r}, no product of bits; {EXPECTED}")
    if node.op == "matmul" and any(_maker(network, name) != "sign" for name in node.inputs):
        raise ConfigError(f"{what} of real numbers, not of bits; {EXPECTED}")


def _maker(network: Network, name: str) -> str:
    """The operation that gives a value."""
    return network.nodes[network.maker[name]].op


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.uint8 else array.astype("<f4")


def _written(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "inputs": node.inputs,
        "params": node.params,
        "attributes": dict(node.attributes),
        "outputs": node.outputs,
        "inside": dict(node.inside),
        "heard": node.tap not in ("", "gradient"),
    }
