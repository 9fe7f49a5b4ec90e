"""What the page of an image shows of a run: taps [SPEC 8.1], small enough to travel in the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.classifiers import Classifier
from refimpl.models import flatten, insides
from refimpl.models.nodes import Network, Node
from refimpl.models.packing import pack_rows

CHANNELS = 64  # of a wide network the first ones are shown
BINS = 40  # of a histogram
REACH = 2.0  # of a histogram, each way, and of the largest margin that is told from others: in RMS
NEAR = 0.01  # of the RMS: a sign so close to its threshold is called near


class Margins(NamedTuple):
    """How far the values in front of a threshold are from it, in units of their own RMS."""

    name: str  # of the tap
    count: int
    zero: int  # values at the threshold itself
    near: float  # share of values less than NEAR away
    closest: float
    histogram: np.ndarray  # (BINS,) values between -REACH and REACH


def look(ask: Classifier, x: np.ndarray) -> dict[str, np.ndarray]:
    """Run the network on one image (1, channels, H, W) -> the taps that are shown, without B.

    With differential attention there is one value more a block, by the name of its layer, the term
    itself (N, C). Errors as in `model.forward`.
    """
    taps, network = {}, ask.model.network
    drawn = {name for _, _, names in drawn_in(network) for name in names}
    shown = drawn.union(name for _, name, _ in thresholds(network))

    def listen(name: str, value: np.ndarray, op: Any, inputs: Any) -> None:
        if name in shown:
            taps[name] = value[0]

    ask.model.forward(ask.params, x.astype(ask.dtype), tap=listen, backend=ops)
    flat = flatten(ask.params)
    for node in network.nodes:
        if node.op == "differential":
            args = [taps[name][None] for name in node.inputs]
            term, _ = ops.differential.forward(*args, *(flat[path] for path in node.params))
            taps[node.layer] = term[0]
    return taps


def embedded(network: Network, taps: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What the page draws, by tap, as JSON: {"shape", "data"}, data as base64.

    A bit is a bit, in the order of the shape, the first in the lowest place [SPEC 1]. Queries and
    keys carry "margins", a byte a bit: 255 is REACH times the RMS. Tokens (N, C) are signed bytes
    with the "scale" that 127 stands for, the same for those that are to be compared;
    probabilities are bytes, see `_probabilities`.
    """
    found: dict[str, dict[str, Any]] = {}
    for _, what, (name, *others) in drawn_in(network):
        value = taps[name]
        if what == "signs":
            found[name] = _bits(value) | {"margins": _margin_bytes(taps[others[0]])}
        elif what == "booleans":
            found[name] = _bits(value)
        elif what == "tokens":
            found |= _tokens({name: taps[name] for name in (name, *others)})
        else:
            found[name] = _probabilities(value, binary=what == "ratios")
    return found


def margins(network: Network, taps: Mapping[str, np.ndarray], block: int) -> list[Margins]:
    """Of every threshold of a block, in order of computation; none where nothing is binary."""
    return [
        _margins(name, taps[name], threshold)
        for node, name, threshold in thresholds(network)
        if node.block == block
    ]


def drawn_in(network: Network) -> Iterator[tuple[Node, str, tuple[str, ...]]]:
    """What is drawn, as (node, kind, names of taps): of several, those that belong together."""
    for node in network.nodes:
        if node.op == "bands" and node.attributes["mode"] != "none":
            yield node, "tokens", (*node.inputs, *node.outputs)
        elif node.op == "sign" and network.nodes[network.readers[node.name][0][0]].op == "matmul":
            yield node, "signs", (node.name, *node.inputs)  # of queries and keys
        elif node.op in ("softmax", "window_softmax") and node.tap == "real":
            yield node, "probabilities", (node.name,)
        elif node.op == "boolean_attention" and _has_bits(node):
            yield node, "ratios", (node.inside["prob.z"],)
            yield node, "booleans", (node.inside["prob.bit"],)
        elif node.op == "differential":
            yield node, "tokens", (*node.inputs, node.layer)


def thresholds(network: Network) -> Iterator[tuple[Node, str, float]]:
    """Every value in front of a bit, as (node, name, threshold), in order of computation."""
    for node in network.nodes:
        if node.op == "sign" or (node.op == "binary_linear" and _has_bits(node)):
            yield node, node.inputs[0], 0.0
        elif node.op == "boolean_attention" and _has_bits(node):
            yield node, node.inside["prob.z"], 0.5


def _has_bits(node: Node) -> bool:
    return insides.of(node) is not None


def _margins(name: str, z: np.ndarray, threshold: float) -> Margins:
    distance = z.astype(np.float64) - threshold
    relative = distance / (_rms(distance) or 1.0)
    size = np.abs(relative)
    histogram, _ = np.histogram(relative, BINS, (-REACH, REACH))
    return Margins(
        name,
        size.size,
        int(np.count_nonzero(distance == 0)),
        float(np.mean(size < NEAR)),
        float(size.min()),
        histogram,
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _bits(bit: np.ndarray) -> dict[str, Any]:
    return {"shape": bit.shape, "data": _base64(pack_rows(bit.ravel()))}


def _margin_bytes(z: np.ndarray) -> str:
    share = np.abs(z, dtype=np.float64) / (REACH * _rms(z) or 1.0)
    return _base64(np.rint(255 * np.minimum(share, 1)).astype(np.uint8))


def _probabilities(value: np.ndarray, binary: bool) -> dict[str, Any]:
    """Of attention (heads, N, N): 255 is q = 1 or more; of a real one the largest of its row."""
    share = np.minimum(value, 1) if binary else value / value.max(axis=-1, keepdims=True)
    return {"shape": value.shape, "data": _base64(np.rint(255 * share).astype(np.uint8))}


def _tokens(taps: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Tokens (N, C) that are to be compared; a few values beyond the scale are clipped."""
    values = {name: value[:, :CHANNELS] for name, value in taps.items()}
    sizes = np.concatenate([np.abs(value).ravel() for value in values.values()])
    scale = float(np.quantile(sizes, 0.97)) or 1.0
    found = {}
    for name, value in values.items():
        signed = np.rint(127 * np.clip(value / scale, -1, 1)).astype(np.int8)
        found[name] = {"shape": signed.shape, "scale": scale, "data": _base64(signed)}
    return found


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
