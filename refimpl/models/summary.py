"""What a network costs, layer by layer, from the list of its operations alone.

One row a layer, in order of computation, for one image. Conventions:

- Parameters: 1-bit ones are the entries of the matrices that are binarized, 32-bit ones all
  others. A matrix of stage "activations" or "none" is real.
- Bytes are those of a packed file: bits in rows padded to 64 [SPEC 1], a float for the scale of
  each row, a float for every other parameter; without the file's header.
- MACs are multiply-accumulates of matrix products. One is 1-bit where both factors have one bit
  (signs or a boolean), else 32-bit. Elementwise work (norms, softmax, RPReLU, shortcuts, Haar
  bands, neighbours, scaling by s_o, bilinear interpolation) is not counted. That is how papers on
  binary networks count (Bi-Real Net, ReActNet): FLOPs are 32-bit MACs, BOPs 1-bit MACs,
  OPs = FLOPs + BOPs / 64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import ModelFileError, did_you_mean, require_choice
from refimpl.models import architectures, binary, files, insides, packing
from refimpl.models.config import Config
from refimpl.models.nodes import Network, Node, Parameter, Shape
from refimpl.models.operations import OPERATIONS

HEADER = (
    "layer",
    "output",
    "1-bit params",
    "32-bit params",
    "packed bytes",
    "1-bit MACs",
    "32-bit MACs",
)


def working_bytes(config: Config, number: int) -> int:
    """Estimate what NumPy takes at a time for an image, with numbers of so many bytes.

    The scores of all heads in the largest stage, which are there four times (bits, whole numbers,
    scaled, as shares), or the channels within an MLP, and the image.
    """
    scores = max(stage.heads * stage.num_tokens * stage.num_keys for stage in config.stages)
    hidden = max(stage.num_tokens * stage.dim * config.mlp_ratio for stage in config.stages)
    return number * (4 * max(scores, hidden) + 2 * config.channels * math.prod(config.image_size))


def value_bytes(network: Network, number: int) -> int:
    """Count the bytes of all values of one image, with numbers of so many bytes."""
    return number * sum(map(math.prod, network.shapes.values()))


class Row(NamedTuple):
    """One layer; the fields are those of its JSON object."""

    name: str
    shape: Shape  # of its output, for one image
    params_1bit: int
    params_32bit: int
    bytes: int
    macs_1bit: int
    macs_32bit: int


class Summary(NamedTuple):
    """The rows, and totals over them."""

    config: Config
    floats: str  # dtype of the packed file's floats
    rows: list[Row]

    @property
    def total(self) -> Row:
        """Every column's sum; the shape is that of the logits."""
        sums = [sum(column) for column in zip(*(row[2:] for row in self.rows), strict=True)]
        return Row("total", self.rows[-1].shape, *sums)

    @property
    def float32_bytes(self) -> int:
        """Bytes of all parameters in float32."""
        return 4 * (self.total.params_1bit + self.total.params_32bit)

    @property
    def compression(self) -> float:
        """Bytes in float32 over bytes packed."""
        return self.float32_bytes / self.total.bytes

    @property
    def ops(self) -> float:
        """The papers' OPs = FLOPs + BOPs / 64, for one image."""
        return self.total.macs_32bit + self.total.macs_1bit / 64

    def to_json(self) -> dict[str, Any]:
        """Give {"config", "floats", "layers": [a Row each], "total": {…}}, plain JSON values."""
        total = self.total._asdict()
        del total["name"], total["shape"]
        total |= {
            "float32_bytes": self.float32_bytes,
            "compression": self.compression,
            "ops": self.ops,
        }
        return {
            "config": self.config.to_json(),
            "floats": self.floats,
            "layers": [{**row._asdict(), "shape": list(row.shape)} for row in self.rows],
            "total": total,
        }

    def table(self) -> str:
        """Write aligned lines: a row a layer, the sums, and the figures about the whole."""
        lines = _align([HEADER, *map(_cells, self.rows), _cells(self.total)])
        rule = "-" * max(map(len, lines))
        figures = (
            ("parameters", f"{self.total.params_1bit + self.total.params_32bit:,}"),
            ("packed", f"{self.total.bytes:,} bytes, floats as {self.floats}"),
            ("in float32", f"{self.float32_bytes:,} bytes"),
            ("compression", f"{self.compression:.2f}"),
            ("OPs", f"{self.ops:,.0f} = FLOPs (32-bit MACs) + BOPs (1-bit MACs) / 64"),
        )
        lines[1:1], lines[-1:-1] = [rule], [rule]
        return "\n".join([*lines, "", *(f"{name:12} {value}" for name, value in figures)])


def of(name_or_path: str | os.PathLike) -> Summary:
    """Summarise an architecture's name, a shipped model's name, or a file of either kind.

    A packed file is described with the floats it has. ModelFileError as in `files.read_any`.
    """
    name = files.as_text(name_or_path)
    if name in architectures.NAMES:
        return summarise(architectures.named(name))
    if not os.path.exists(name) and name not in files.shipped():
        names = [*files.shipped(), *architectures.NAMES]
        raise ModelFileError(
            f"{name}: no such file or model, and no architecture; expected one that "
            f"`refimpl models` lists{did_you_mean(name, names)}"
        )
    file = files.read_any(name)
    if isinstance(file, files.PackedFile):
        dtypes = {array.dtype.name for array in file.arrays.values()}
        (floats,) = dtypes.intersection(packing.FLOATS)
        return summarise(file.model.config, floats)
    return summarise(file.model.config)


def summarise(config: Config, floats: str = "float32") -> Summary:
    """Summarise a network; `floats` ("float32", "float16") is what a packed file is to hold."""
    require_choice("summary", "floats", floats, packing.FLOATS)
    return Summary(config, floats, rows(binary.network(config), floats))


def rows(network: Network, floats: str = "float32") -> list[Row]:
    """List every layer of a list of operations; `floats` as in `summarise`."""
    owned: dict[str, list[Parameter]] = {}
    for parameter in network.parameters.values():
        owned.setdefault(parameter.layer, []).append(parameter)
    size = {"bits": 1, "floats": np.dtype(floats).itemsize}
    cut, found = _cut(network), []
    for layer, nodes in layers(network).items():
        counts = dict.fromkeys(Row._fields[2:], 0)
        for parameter in owned.get(layer, ()):
            counts[f"params_{_width(parameter.traits.binary)}"] += math.prod(parameter.shape)
            for shape, part in packing.stored(parameter).values():
                counts["bytes"] += math.prod(shape) * size[part]
        for node in nodes:
            counts[f"macs_{_width(_is_whole(node))}"] += _macs(network, node)
        found.append(Row(layer, _output(network, nodes, cut), **counts))
    return found


def layers(network: Network) -> dict[str, list[Node]]:
    """Find layer -> the nodes that compute in it, in order of computation."""
    found: dict[str, list[Node]] = {}
    for node in network.nodes:
        if node.inputs:  # others make parameters ready, before the first layer
            found.setdefault(node.layer, []).append(node)
    return found


def _width(binary: bool) -> str:
    return "1bit" if binary else "32bit"


def _is_whole(node: Node) -> bool:
    """Whether a product is one of bits: then, and only then, it is a whole number."""
    inside = insides.of(node)
    steps = inside.values.values() if inside else ()
    return node.tap == "int" or any(step.kind == "int" for step in steps)


def _macs(network: Network, node: Node) -> int:
    return OPERATIONS[node.op].macs(*map(network.shape, (*node.args, node.name)))


def _output(network: Network, nodes: list[Node], cut: set[str]) -> Shape:
    """What the layer makes: the output of its last node with parameters or a product.

    Behind that it is cut for the windows and heads that read it, or added to others.
    """
    makers = [node for node in nodes if node.params or _macs(network, node)]
    last = (makers or nodes)[-1]
    shape = network.shapes[last.name][0 if last.name in cut else 1 :]
    return (len(last.outputs), *shape) if len(last.outputs) > 1 else shape


def _cut(network: Network) -> set[str]:
    """Values whose first axis counts windows."""
    found: set[str] = set()
    for node in network.nodes:
        if node.op == "windows" or (node.op != "join_windows" and found.intersection(node.inputs)):
            found.update(node.outputs)
    return found


def _cells(row: Row) -> list[str]:
    return [row.name, str(row.shape), *(f"{number:,}" if number else "-" for number in row[2:])]


def _align(table: Iterable[Iterable[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    table = list(map(list, table))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
        for first, *others in table
    ]
