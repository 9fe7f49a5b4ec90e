"""What a network costs, layer by layer, from its configuration alone.

One row a layer, in order of computation, for one image. Conventions:

- Parameters are those of `params.shapes`: 1-bit ones are the entries of the matrices that are
  binarized, 32-bit ones all others. A matrix of stage "activations" or "none" is real.
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
from refimpl.models import config as configs
from refimpl.models import files, packing
from refimpl.models import params as parameters
from refimpl.models.config import Config
from refimpl.models.params import Shape
from refimpl.models.stage import Stage

HEADER = (
    "layer",
    "output",
    "1-bit params",
    "32-bit params",
    "packed bytes",
    "1-bit MACs",
    "32-bit MACs",
)


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
        """{"config", "floats", "layers": [a Row each], "total": {…}}, plain JSON values."""
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
        """Lines of text, aligned: a row a layer, the sums, and the figures about the whole."""
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
    """Summary of an architecture's name, a shipped model's name, or a file of either kind.

    A packed file is described with the floats it has. ModelFileError as in `files.read_any`.
    """
    name = os.fspath(name_or_path)
    if name in configs.NAMES:
        return summarise(configs.named(name))
    if not os.path.exists(name) and name not in files.shipped():
        names = [*files.shipped(), *configs.NAMES]
        raise ModelFileError(
            f"{name}: no such file or model, and no architecture; expected one that "
            f"`refimpl models` lists{did_you_mean(name, names)}"
        )
    file = files.read_any(name)
    if isinstance(file, files.PackedFile):
        return summarise(file.model.config, file.arrays["head.weight"].dtype.name)
    return summarise(file.model.config)


def summarise(config: Config, floats: str = "float32") -> Summary:
    """Summary of a network; `floats` ("float32", "float16") is what a packed file is to hold."""
    require_choice("summary", "floats", floats, packing.FLOATS)
    N = config.tokens
    # blocks of a stage are alike: one of each is counted
    counter = _Counter(config.with_depths([1] * len(config.depths)), floats)
    block = _binary_block if config.block == "binary" else _real_block
    embedding = ("cls_token", "pos_embed", "embed_norm.weight", "embed_norm.bias")
    rows = [
        counter.row(_Layer("patch_embed", (math.prod(config.grid), config.dim))),
        counter.row(_Layer("tokens", (N, config.dim), also=embedding)),
    ]
    i = 0
    for s, stage in enumerate(config.stages):
        if s > 0:
            rows += [counter.row(layer) for layer in _merging(s - 1, stage)]
        prefix = f"blocks.{s}."  # of the counter's network
        own = [counter.row(layer.below(prefix)) for layer in block(config, stage)]
        for _ in range(config.depths[s]):
            rows += [
                row._replace(name=f"blocks.{i}.{row.name.removeprefix(prefix)}") for row in own
            ]
            i += 1
    rows += [
        counter.row(layer)
        for layer in (_Layer("norm", (stage.tokens, stage.dim)), *_after_the_norm(config))
    ]
    return Summary(config, floats, rows)


class _Layer(NamedTuple):
    """A layer to be counted. Its parameters are those below its name, and those in `also`."""

    name: str
    shape: Shape
    also: tuple[str, ...] = ()
    product: int = 0  # MACs of a product of two activations

    def below(self, prefix: str) -> _Layer:
        also = tuple(prefix + path for path in self.also)
        return self._replace(name=prefix + self.name, also=also)


def _after_the_norm(config: Config) -> list[_Layer]:
    if config.decoder == "none":
        return [_Layer("head", config.logits_shape)]
    pyramid = _pyramid(config) if config.decoder == "fpn" else []
    tokens = config.decoded_stage.patches
    logits = _Layer("logits", config.logits_shape)  # enlarged, no product
    return [*pyramid, _Layer("head", (tokens, config.num_classes)), logits]


def _pyramid(config: Config) -> list[_Layer]:
    D, levels = config.dim, list(enumerate(stage.tokens for stage in config.stages))
    last = len(levels) - 1
    layers = []
    for (s, N), stage in zip(levels, config.stages, strict=True):
        layers += [_Layer(f"decoder.{s}.norm", (N, stage.dim))] * (s < last)
        layers.append(_Layer(f"decoder.{s}.lateral", (N, D)))
    layers += [_Layer(f"decoder.{s}.top", (N, D)) for s, N in reversed(levels[:-1])]
    layers += [_Layer(f"decoder.{s}.smooth", (N, D)) for s, N in levels]
    return layers + [_Layer(f"decoder.{name}", (levels[0][1], D)) for name in ("sum", "gelu")]


def _merging(s: int, stage: Stage) -> list[_Layer]:
    """Patch merging behind stage s, which leads to `stage`."""
    N, C = stage.tokens, stage.dim
    return [_Layer(f"merges.{s}.norm", (N, 2 * C)), _Layer(f"merges.{s}.proj", (N, C))]


def _binary_block(config: Config, stage: Stage) -> list[_Layer]:
    C, N, inputs = stage.dim, stage.tokens, config.attention_inputs
    product = N * stage.keys * C  # heads * N * keys * d
    layers = [_Layer("norm1", (N, C))]
    if config.similarity == "haar":
        layers.append(_Layer("attn.bands", (2, N, C)))
    layers += [_Layer(f"attn.{t}", (N, C), also=(f"attn.{t}_move",)) for t in inputs]
    layers += _products(stage, scores=len(config.bands) * product, context=product)
    layers.append(_Layer("attn.norm", (N, C)))
    if config.attention == "differential":
        also = ("attn.shortcut", "attn.neighbour")
        layers.append(_Layer("attn.differential", (N, C), also))
    layers += [_Layer("attn.rprelu", (N, C)), _Layer("attn.proj", (N, C))]
    layers += [_Layer("scale1", (N, C))] * config.layer_scale
    layers.append(_Layer("norm2", (N, C)))
    layers.append(_Layer("mlp.up", (N, config.mlp_ratio * C)))
    layers.append(_Layer("mlp.down", (N, C)))
    return layers + [_Layer("scale2", (N, C))] * config.layer_scale


def _real_block(config: Config, stage: Stage) -> list[_Layer]:
    C, N = stage.dim, stage.tokens
    hidden, product = (N, config.mlp_ratio * C), N * stage.keys * C
    return [
        _Layer("norm1", (N, C)),
        _Layer("attn.qkv", (N, 3 * C)),
        *_products(stage, scores=product, context=product),
        _Layer("attn.proj", (N, C)),
        _Layer("norm2", (N, C)),
        _Layer("mlp.fc1", hidden),
        _Layer("mlp.gelu", hidden),
        _Layer("mlp.fc2", (N, C)),
    ]


def _products(stage: Stage, scores: int, context: int) -> list[_Layer]:
    """Scores, probabilities (softmax and boolean) and context, with the MACs of the products."""
    keys, d = stage.keys, stage.dim // stage.heads
    heads = (stage.windows, stage.heads) if stage.window else (stage.heads,)
    own = ("attn.band_weight", "attn.position_bias")
    return [
        _Layer("attn.scores", (*heads, keys, keys), also=own, product=scores),
        _Layer("attn.prob", (*heads, keys, keys), also=("attn.alpha",)),
        _Layer("attn.context", (*heads, keys, d), product=context),
    ]


class _Counter:
    """Counts the parameters, bytes and MACs of the layers of one network."""

    def __init__(self, config: Config, floats: str):
        self.latent = parameters.shapes(config)
        self.packed = packing.shapes(config)
        self.binary_matrices = packing.binary_matrices(config)
        self.binary_products = config.block == "binary" and config.binarize != "none"
        self.itemsize = np.dtype(floats).itemsize

    def row(self, layer: _Layer) -> Row:
        counts = dict.fromkeys(Row._fields[2:], 0)
        counts["macs_1bit" if self.binary_products else "macs_32bit"] = layer.product
        tokens = math.prod(layer.shape[:-1])  # a matrix is applied to each
        for path, shape in _own(layer, self.latent):
            width = "1bit" if path in self.binary_matrices else "32bit"
            counts[f"params_{width}"] += math.prod(shape)
            if path.endswith(".weight") and len(shape) > 1:
                counts[f"macs_{width}"] += tokens * math.prod(shape)
        for name, shape in _own(layer, self.packed):
            counts["bytes"] += math.prod(shape) * (1 if name.endswith(".bits") else self.itemsize)
        return Row(layer.name, layer.shape, **counts)


def _own(layer: _Layer, shapes: dict[str, Shape]) -> list[tuple[str, Shape]]:
    """The part of `shapes` that belongs to the layer."""
    return [
        (path, shape)
        for path, shape in shapes.items()
        if path in layer.also or path.startswith(f"{layer.name}.")
    ]


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
