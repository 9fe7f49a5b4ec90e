"""What the page of an image shows of a run: taps [SPEC 8.1], small enough to travel in the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.classifiers import Classifier
from refimpl.models.packing import pack_rows

CHANNELS = 64  # of a wide network the first ones are shown
# Of a block, what is drawn and what has a threshold.
SHOWN = re.compile(
    r"blocks\.\d+\.("
    r"norm1\.out|attn\.(low|high|neighbour_mean|v\.out|prob|prob\.bit)"
    r"|attn\.[qk](_low|_high)?\.head_bit|(?!.*\.weight\.).*\.(z|head_z))"
)
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

    With differential attention there is one value more a block, `attn.differential`, the term
    itself (N, C). Errors as in `model.forward`.
    """
    taps = {}

    def listen(name: str, value: np.ndarray, op: Any, inputs: Any) -> None:
        if SHOWN.fullmatch(name):
            taps[name] = value[0]

    ask.model.forward(ask.params, x.astype(ask.dtype), tap=listen, backend=ops)
    if ask.model.config.attention == "differential":
        for i, block in ask.params["blocks"].items():
            value, mean = (taps[f"blocks.{i}.attn.{t}"] for t in ("v.out", "neighbour_mean"))
            attn = block["attn"]
            term, _ = ops.differential.forward(
                value[None], mean[None], attn["shortcut"], attn["neighbour"]
            )
            taps[f"blocks.{i}.attn.differential"] = term[0]
    return taps


def embedded(taps: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What the page draws, by tap, as JSON: {"shape", "data"}, data as base64.

    A bit is a bit, in the order of the shape, the first in the lowest place [SPEC 1]. Queries and
    keys carry "margins", a byte a bit: 255 is REACH times the RMS. Tokens (N, C) are signed bytes
    with the "scale" that 127 stands for, the same for those that are to be compared;
    probabilities are bytes, see `_probabilities`.
    """
    found = {}
    for name, value in taps.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "head_bit":
            found[name] = _bits(value) | {"margins": _margin_bytes(taps[f"{stem}.head_z"])}
        elif leaf == "bit":
            found[name] = _bits(value)
        elif name.endswith("attn.prob.z") or leaf == "prob":
            found[name] = _probabilities(value, binary=leaf == "z")
    for group in (
        ("norm1.out", "attn.low", "attn.high"),
        (
            "attn.v.out",
            "attn.neighbour_mean",
            "attn.differential",
        ),
    ):
        found |= _tokens(taps, group)
    return found


def margins(taps: Mapping[str, np.ndarray], block: int) -> list[Margins]:
    """Of every threshold of a block, in order of computation; none where nothing is binary."""
    prefix = f"blocks.{block}."
    if f"{prefix}attn.prob.z" not in taps:
        return []
    names = [n for n in taps if n.startswith(prefix) and n.endswith((".z", ".head_z"))]
    return [_margins(name, taps[name]) for name in names]


def _margins(name: str, z: np.ndarray) -> Margins:
    distance = z.astype(np.float64) - (0.5 if name.endswith("attn.prob.z") else 0.0)
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


def _tokens(taps: Mapping[str, np.ndarray], group: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Tokens (N, C) of each block; a few values beyond the scale are clipped."""
    found: dict[str, dict[str, Any]] = {}
    for first in [name for name in taps if name.endswith(f".{group[0]}")]:
        names = [first.removesuffix(group[0]) + end for end in group]
        values = {name: taps[name][:, :CHANNELS] for name in names if name in taps}
        if len(values) < 2:  # nothing to compare: an architecture without the bands, or the term
            continue
        sizes = np.concatenate([np.abs(value).ravel() for value in values.values()])
        scale = float(np.quantile(sizes, 0.97)) or 1.0
        for name, value in values.items():
            signed = np.rint(127 * np.clip(value / scale, -1, 1)).astype(np.int8)
            found[name] = {"shape": signed.shape, "scale": scale, "data": _base64(signed)}
    return found


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
