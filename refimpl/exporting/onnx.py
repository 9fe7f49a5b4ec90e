"""ONNX: a graph of standard operators, whose values are called like the taps of golden bundles.

Bits are bools, products of bits whole numbers (`MatMulInteger`, int32), all else float32. A byte of
a factor is 2 for +1 and 0 for -1, with zero point 1. Norms are written out: runtimes have a single
operator for them that takes the variance in one pass, which loses the digits of [SPEC 6.3].
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from refimpl import ops
from refimpl.conventions import ExportError
from refimpl.disk import require_free, write_atomically
from refimpl.exporting.source import Source, require_ops
from refimpl.models import files, flatten, replay
from refimpl.models.nodes import INPUT, Node
from refimpl.ops import boolean

OPSET, IR_VERSION = 17, 8
FLOAT, BYTE, INT = 1, 2, 6  # ONNX's numbers of float32, uint8 and int32
LARGEST = 2**31 - 2**20  # bytes of constants: protobuf holds 2 GiB, and nodes come on top
BATCH = "batch"  # the name of the axis that may have any length
Grid = tuple[int, int]


def write(
    path: str | os.PathLike, source: Source, *, taps: bool = False, overwrite: bool = False
) -> str:
    """Write a network as an ONNX file; a line that says what it holds.

    taps: every tap is an output [SPEC 8.1], in the order of bundles; of a packed file those of
    latent weights are not there. OutputError where the file exists, unless `overwrite`; ExportError
    for an operation that has no place in a graph, for a network that is too large for one file, and
    where the package onnx is not installed.
    """
    require_free(path, overwrite=overwrite)
    data = to_bytes(source, taps=taps)
    write_atomically(path, data)
    config = source.model.config
    return (
        f"{os.fspath(path)}: {len(data):,} bytes, opset {OPSET}, images (any, {config.channels}, "
        f"{config.image_size[0]}, {config.image_size[1]}) -> {source.network.output}"
        f"{' and every tap' if taps else ''}"
    )


def to_bytes(source: Source, *, taps: bool = False) -> bytes:
    """Give the content of the file; arguments and errors as `write`."""
    try:
        import onnx
    except ImportError:
        raise ExportError(
            "the package onnx is not installed, expected the extra: pip install refimpl[onnx]"
        ) from None
    nodes = [node for node in source.network.nodes if node.inputs]  # others are constants
    require_ops(nodes, OPERATIONS, "ONNX")
    graph = Graph(source, onnx.helper)
    for node in nodes:
        results = list(node.outputs) if len(node.outputs) > 1 else node.name
        OPERATIONS[node.op](graph.at(node), results, *node.args, **node.attributes)
    shown = _taps(graph) if taps else []
    if graph.size > LARGEST:
        raise ExportError(
            f"{source.path}: has constants of {graph.size:,} bytes; expected at most {LARGEST:,}, "
            "which is what one ONNX file holds"
        )
    model = graph.model()
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = {value.name: value for value in (*model.graph.value_info, *graph.constants())}
    model.graph.output.extend(values[name] for name in shown if name != source.network.output)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _taps(graph: Graph) -> list[str]:
    """Names of all taps but the image, in order of computation."""
    source, found = graph.source, []
    file = files.read_any(source.path)
    for tap in (tap for taps in replay.taps(source.network).forward for tap in taps):
        if tap.what == "weight.z":
            if isinstance(file, files.PackedFile):
                continue
            (path,) = tap.params
            latent = flatten(file.params)[path].astype(np.float64)
            centred = ops.weight_binarizer.binarize(latent).centred
            graph.constant(tap.name, centred.astype(np.float32))
        found.append(tap.name)
    return found


class Graph:
    """Collects nodes and constants of an ONNX graph; operations give names and take names."""

    def __init__(self, source: Source, helper: Any):
        self.source, self._helper = source, helper
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._bytes: dict[str, str] = {}  # bit -> its levels 0 and 2
        self._other: dict[str, str] = {}  # hidden value -> the one that it is
        self._kinds: dict[str, str] = {}  # of what is no real: "bit" or "int"
        self._node: Node | None = None

    def at(self, node: Node) -> Graph:
        """Say which node of the list the next ones belong to."""
        self._node = node
        return self

    @property
    def node(self) -> Node:
        """The node of the list that is being written."""
        assert self._node is not None
        return self._node

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value for one image, or of a parameter."""
        return self.source.network.shape(name)

    def __call__(
        self,
        op: str,
        *inputs: str,
        to: Any = None,
        kind: str = "real",
        to_type: int = 0,
        **attributes: Any,
    ) -> Any:
        """Add an operator; its output is called `to`, or after the node of the list."""
        outputs = [to] if not isinstance(to, list) else to
        outputs = [name or f"{self.node.name}/{len(self._nodes)}" for name in outputs]
        name = f"{self.node.name}/{op}_{len(self._nodes)}"
        if to_type:  # of a Cast, which calls it `to` as well
            attributes["to"] = to_type
        self._kinds |= dict.fromkeys(outputs, kind)
        inputs = [self._other.get(x, x) for x in inputs]
        self._nodes.append(self._helper.make_node(op, inputs, outputs, name, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def same(self, x: str, to: str) -> None:
        """Give a value another name: a hidden one costs no operator."""
        if self.node.tap:
            self("Identity", x, to=to)
        else:
            self._other[to] = self._other.get(x, x)

    def constant(self, name: str, array: Any) -> str:
        """Add an array under a name of its own; the same name is the same array."""
        self._constants[name] = np.ascontiguousarray(array).reshape(np.shape(array))
        return name

    def number(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a scalar."""
        return self.constant(f"number/{np.dtype(dtype)}/{float(value)!r}", np.array(value, dtype))

    def sizes(self, *values: int) -> str:
        """Add a list of whole numbers: a shape, axes, starts, pads."""
        return self.constant(f"sizes/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def kind(self, name: str) -> str:
        """ "bit", "int" or "real"."""
        return self._kinds.get(self._other.get(name, name), "real")

    def real(self, name: str) -> str:
        """A value or parameter as float32: whole numbers are cast, bits become -1 and +1."""
        network = self.source.network
        if name in network.parameters or name in network.of_parameters:
            return self.constant(name, self.source.array(name))
        if self.kind(name) == "int":
            return self("Cast", name, to_type=FLOAT)
        if self.kind(name) == "bit":
            return self("Where", name, self.number(1), self.number(-1))
        return name

    def levels(self, bit: str) -> str:
        """A bit as a byte: 2 for +1 and 0 for -1, to be read with zero point 1."""
        if bit not in self._bytes:
            two, zero = self.number(2, np.uint8), self.number(0, np.uint8)
            self._bytes[bit] = self("Where", bit, two, zero)
        return self._bytes[bit]

    def slice(self, x: str, axis: int, begin: int, end: int | None = None, to: Any = None) -> str:
        """x[…, begin:end, …] along an axis."""
        last = np.iinfo(np.int64).max if end is None else end
        bounds = self.sizes(begin), self.sizes(last), self.sizes(axis)
        return self("Slice", x, *bounds, to=to)

    def reshape(self, x: str, *shape: int, to: Any = None) -> str:
        """0 keeps an axis, -1 is what is left."""
        return self("Reshape", x, self.sizes(*shape), to=to)

    @property
    def size(self) -> int:
        """Bytes of all constants."""
        return sum(array.nbytes for array in self._constants.values())

    def constants(self) -> list[Any]:
        """Type and shape of every constant."""
        return [
            self._helper.make_tensor_value_info(
                name, self._helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in self._constants.items()
        ]

    def model(self) -> Any:
        """Give the finished model: images in, logits out."""
        from onnx import numpy_helper

        helper, source = self._helper, self.source
        config, output = source.model.config, source.network.output
        image = [BATCH, config.channels, *config.image_size]
        arrays = self._constants.items()
        graph = helper.make_graph(
            self._nodes,
            source.name,
            [helper.make_tensor_value_info(INPUT, FLOAT, image)],
            [helper.make_tensor_value_info(output, FLOAT, [BATCH, *config.logits_shape])],
            [numpy_helper.from_array(array, name) for name, array in arrays],
            doc_string="Values are called like the taps of golden bundles.",
        )
        made = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="refimpl",
        )
        described = {key: json.dumps(v) for key, v in files.describe(source.model).items()}
        helper.set_model_props(made, {"sha256": source.sha256, **described})
        return made


# --- tokens and their shapes ----------------------------------------------------------------------


def _patch_embed(g: Graph, y: str, image: str, weight: str, bias: str) -> None:
    side, (channels, *_) = g.shape(weight)[-1], g.shape(weight)
    maps = g("Conv", image, g.real(weight), g.real(bias), strides=[side, side])
    g("Transpose", g.reshape(maps, 0, channels, -1), perm=[0, 2, 1], to=y)


def _class_token(g: Graph, y: str, x: str, token: str) -> None:
    batch = g("Shape", x, start=0, end=1)
    shape = g("Concat", batch, g.sizes(1, g.shape(token)[-1]), axis=0)
    g("Concat", g("Expand", g.real(token), shape), x, axis=1, to=y)


def _drop_class_token(g: Graph, y: str, x: str) -> None:
    g.slice(x, 1, 1, to=y)


def _pool(g: Graph, y: str, x: str, pool: str) -> None:
    if pool == "cls":
        g("Gather", x, g.constant("first", np.array(0, np.int64)), axis=1, to=y)
    else:
        g("ReduceMean", x, axes=[1], keepdims=0, to=y)


def _split(g: Graph, ys: list[str], x: str, parts: int) -> None:
    g("Split", x, axis=-1, to=ys)


def _split_heads(g: Graph, y: str, x: str, heads: int, transposed: bool = False) -> None:
    _, tokens, channels = g.shape(x)
    x = g.reshape(x, 0, tokens, heads, channels // heads)
    g("Transpose", x, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3], to=y)


def _merge_heads(g: Graph, y: str, x: str) -> None:
    _, heads, tokens, d = g.shape(x)
    g.reshape(g("Transpose", x, perm=[0, 2, 1, 3]), 0, tokens, heads * d, to=y)


def _to_grid(g: Graph, y: str | None, x: str, grid: Grid, channels: int = 0) -> str:
    channels = channels or g.shape(x)[-1]
    return g.reshape(g("Transpose", x, perm=[0, 2, 1]), 0, channels, *grid, to=y)


def _from_grid(g: Graph, y: str | None, x: str, channels: int = 0) -> str:
    channels = channels or g.shape(x)[1]
    return g("Transpose", g.reshape(x, 0, channels, -1), perm=[0, 2, 1], to=y)


def _order(grid: Grid, window: int, shift: int) -> np.ndarray:
    """(gh*gw,): the token at each place of an image's windows."""
    tokens = np.arange(math.prod(grid), dtype=np.float64).reshape(1, -1, 1)
    return ops.windows.forward(tokens, grid, window, shift)[0].reshape(-1).astype(np.int64)


def _windows(g: Graph, y: str, x: str, grid: Grid, window: int, shift: int = 0) -> None:
    name = f"windows/{grid[0]}_{grid[1]}/{window}/{shift}"
    order = g.constant(name, _order(grid, window, shift))
    g.reshape(g("Gather", x, order, axis=1), -1, window * window, g.shape(x)[-1], to=y)


def _join_windows(g: Graph, y: str, x: str, grid: Grid, window: int, shift: int = 0) -> None:
    name = f"join_windows/{grid[0]}_{grid[1]}/{window}/{shift}"
    back = g.constant(name, np.argsort(_order(grid, window, shift)))
    g("Gather", g.reshape(x, -1, math.prod(grid), g.shape(x)[-1]), back, axis=1, to=y)


def _merge_patches(g: Graph, y: str, x: str, grid: Grid) -> None:
    (gh, gw), channels = grid, g.shape(x)[-1]
    x = g.reshape(x, 0, gh // 2, 2, gw // 2, 2, channels)
    x = g("Transpose", x, perm=[0, 1, 3, 4, 2, 5])
    g.reshape(x, 0, gh * gw // 4, 4 * channels, to=y)


def _fit(g: Graph, y: str, x: str, outputs: int) -> None:
    (*front, inputs), count = g.shape(x), len(g.shape(x))
    if outputs == inputs:
        g.same(x, to=y)
    elif outputs > inputs:
        g("Concat", *[x] * (outputs // inputs), axis=-1, to=y)
    else:
        x = g.reshape(x, 0, *front[1:], outputs, inputs // outputs)
        g("ReduceMean", x, axes=[count], keepdims=0, to=y)


def _interpolate(g: Graph, y: str, x: str, size: Grid, mode: str = "bicubic") -> None:
    """Each axis by a product with a small matrix."""
    for axis, (n, m) in enumerate(zip(g.shape(x)[-2:], size, strict=True)):
        if n != m:
            weights = ops.interpolate.forward(np.zeros((n, 1)), (m, 1), mode)[1].rows
            weights = weights.astype(np.float32)
            name = f"interpolate/{mode}/{n}/{m}/{'rows' if axis == 0 else 'columns'}"
            matrix = g.constant(name, weights if axis == 0 else weights.T)
            x = g("MatMul", *((matrix, x) if axis == 0 else (x, matrix)))
    g.same(x, to=y)


def _same(g: Graph, y: str, x: str) -> None:
    g.same(x, to=y)


# --- maps that are smooth -------------------------------------------------------------------------


def _add(g: Graph, y: str, *terms: str) -> None:
    first, *others = terms
    for i, term in enumerate(others, 1):
        first = g("Add", first, term, to=y if i == len(others) else None)
    if not others:
        g.same(first, to=y)


def _moved(g: Graph, y: str, x: str, param: str) -> None:
    g("Add", x, g.real(param), to=y)


def _divide(g: Graph, y: str, x: str, divisor: float) -> None:
    g("Div", g.real(x), g.number(divisor), to=y)


def _rescale(g: Graph, y: str, x: str, factor: float) -> None:
    g("Mul", x, g.number(factor), to=y)


def _layer_scale(g: Graph, y: str, x: str, alpha: str, beta: str | None = None) -> None:
    scaled = g("Mul", g.real(alpha), x, to=y if beta is None else None)
    if beta is not None:
        g("Add", scaled, g.real(beta), to=y)


def _product(g: Graph, y: str | None, x: str, weight: str) -> str:
    matrix = g.constant(f"{weight}.T", g.source.array(weight).T)
    return g("MatMul", x, matrix, to=y)


def _linear(g: Graph, y: str, x: str, weight: str, bias: str | None = None) -> None:
    product = _product(g, y if bias is None else None, x, weight)
    if bias is not None:
        g("Add", product, g.real(bias), to=y)


def _layer_norm(g: Graph, y: str, x: str, weight: str, bias: str, eps: float) -> None:
    last = {"axes": [len(g.shape(x)) - 1], "keepdims": 1}
    centred = g("Sub", x, g("ReduceMean", x, **last))
    # not Pow, by which runtimes would know a norm and put their one pass in its place
    variance = g("ReduceMean", g("Mul", centred, centred), **last)
    std = g("Sqrt", g("Add", variance, g.number(eps)))
    g("Add", g("Mul", g("Div", centred, std), g.real(weight)), g.real(bias), to=y)


def _batch_norm(
    g: Graph, y: str, x: str, weight: str, bias: str, mean: str, variance: str, eps: float
) -> None:
    std = g.constant(f"{variance}.std", np.sqrt(g.source.array(variance) + np.float32(eps)))
    normalised = g("Div", g("Sub", x, g.real(mean)), std)
    g("Add", g("Mul", normalised, g.real(weight)), g.real(bias), to=y)


def _gelu(g: Graph, y: str, x: str) -> None:
    erf = g("Erf", g("Div", x, g.number(math.sqrt(2))))
    g("Mul", x, g("Mul", g("Add", erf, g.number(1)), g.number(0.5)), to=y)


def _rprelu(
    g: Graph, y: str, x: str, shift_in: str, slope: str, shift_out: str, *tokens: str
) -> None:
    u = g("Sub", x, g.real(shift_in))
    columns = [g.constant(f"{t}.column", g.source.array(t)[:, None]) for t in tokens]
    if tokens:
        u = g("Sub", u, columns[0])
    # three axes: of a vector runtimes do not agree which axis is meant
    u = g("PRelu", u, g.constant(f"{slope}.row", g.source.array(slope)[None, None]))
    u = g("Add", u, g.real(shift_out), to=None if tokens else y)
    if tokens:
        g("Add", u, columns[1], to=y)


def _softmax(g: Graph, y: str, x: str) -> None:
    g("Softmax", x, axis=-1, to=y)


def _window_softmax(g: Graph, y: str, x: str, grid: Grid, window: int, shift: int) -> None:
    seen = ops.windows.mask(grid, window, shift)[:, None]  # (nW, 1, M*M, M*M)
    mask = g.constant(f"mask/{grid[0]}_{grid[1]}/{window}/{shift}", seen)
    _, *rest = g.shape(x)
    rows = g.reshape(x, -1, len(seen), *rest)
    shares = g("Softmax", g("Where", mask, rows, g.number(-math.inf)), axis=-1)
    # exactly 0, whatever a runtime's exp makes of -inf
    g.reshape(g("Where", mask, shares, g.number(0)), -1, *rest, to=y)


def _position_bias(g: Graph, y: str, x: str, table: str) -> None:
    offsets = ops.position_bias.offsets(math.isqrt(g.shape(x)[-1]))
    bias = g.constant(f"{table}.pairs", g.source.array(table)[offsets].transpose(2, 0, 1))
    g("Add", x, bias, to=y)


def _band_sum(g: Graph, y: str, low: str, high: str, weights: str, head_dim: int) -> None:
    pairs = zip((low, high), ("low", "high"), g.source.array(weights)[:, :, None, None])
    terms = [
        g("Mul", g.constant(f"{weights}.{band}", weight), g.real(x)) for x, band, weight in pairs
    ]
    g("Div", g("Add", *terms), g.number(math.sqrt(head_dim)), to=y)


def _differential(g: Graph, y: str, value: str, mean: str, shortcut: str, neighbour: str) -> None:
    terms = g("Mul", g.real(shortcut), value), g("Mul", g.real(neighbour), mean)
    g("Sub", *terms, to=y)


# --- neighbours on the grid -----------------------------------------------------------------------


def _bands(
    g: Graph, ys: list[str], x: str, grid: Grid, mode: str = "edge", cls: str = "both"
) -> None:
    _, tokens, channels = g.shape(x)
    first = tokens - math.prod(grid)
    image = g.reshape(g.slice(x, 1, first) if first else x, 0, *grid, channels)
    low = high = image
    if mode != "none":
        right = _next(g, image, 2, grid[1], mode)
        sums, differences = g("Add", image, right), g("Sub", image, right)
        sums_below = _next(g, sums, 1, grid[0], mode)
        differences_below = _next(g, differences, 1, grid[0], mode)
        low = _quarter(g, "Add", sums, sums_below)
        across = _quarter(g, "Sub", sums, sums_below)
        along = _quarter(g, "Add", differences, differences_below)
        both = _quarter(g, "Sub", differences, differences_below)
        high = g("Add", g("Add", across, along), both)
    token = g.slice(x, 1, 0, first) if first else ""
    other = g("Mul", token, g.number(0)) if first and cls == "low" else token
    for y, band, front in zip(ys, (low, high), (token, other)):
        rows = g.reshape(band, 0, math.prod(grid), channels, to=None if first else y)
        if first:
            g("Concat", front, rows, axis=1, to=y)


def _next(g: Graph, x: str, axis: int, length: int, mode: str) -> str:
    """The neighbour at i + 1; past the end the last one, or the first."""
    past = (length - 1, length) if mode == "edge" else (0, 1)
    if length == 1:
        return x
    return g("Concat", g.slice(x, axis, 1), g.slice(x, axis, *past), axis=axis)


def _quarter(g: Graph, op: str, a: str, b: str) -> str:
    return g("Mul", g(op, a, b), g.number(0.25))


def _neighbours(g: Graph, y: str, x: str, grid: Grid, border: str = "existing") -> None:
    """The sum is a convolution of each channel with ones around a 0."""
    _, tokens, channels = g.shape(x)
    first = tokens - math.prod(grid)
    maps = _to_grid(g, None, g.slice(x, 1, first) if first else x, grid, channels)
    kernel = np.ones((channels, 1, 3, 3), np.float32)
    kernel[:, :, 1, 1] = 0
    ones = g.constant(f"neighbours/{channels}", kernel)
    total = g("Conv", maps, ones, group=channels, pads=[1, 1, 1, 1])
    example = np.zeros((1, math.prod(grid), 1))
    counts = ops.neighbours.forward(example, grid, border)[1].divisor[..., 0]
    divisor = g.constant(f"neighbours/{grid[0]}_{grid[1]}/{border}", counts.astype(np.float32))
    mean = _from_grid(g, None if first else y, g("Div", total, divisor), channels)
    if first:
        g("Concat", g("Mul", g.slice(x, 1, 0, first), g.number(0)), mean, axis=1, to=y)


def _box(g: Graph, y: str, x: str, grid: Grid, side: int, axis: int) -> None:
    channels = g.shape(x)[-1]
    shape, reach = ((side, 1), (side // 2, 0)) if axis == 0 else ((1, side), (0, side // 2))
    ones = g.constant(f"box/{channels}/{shape[0]}_{shape[1]}", np.ones((channels, 1, *shape), "f4"))
    maps = _to_grid(g, None, x, grid)
    total = g("Conv", maps, ones, group=channels, pads=[*reach, *reach])
    _from_grid(g, y, g("Div", total, g.number(side)), channels)


def _convolution(g: Graph, y: str, x: str, weight: str, bias: str, grid: Grid) -> None:
    maps = _to_grid(g, None, x, grid)
    maps = g("Conv", maps, g.real(weight), g.real(bias), pads=[1, 1, 1, 1])
    _from_grid(g, y, maps, g.shape(weight)[0])


# --- thresholds -----------------------------------------------------------------------------------


def _sign(g: Graph, y: str, z: str, ste: str = "polynomial") -> None:
    g("GreaterOrEqual", z, g.number(0), to=y, kind="bit")


def _whole(g: Graph, y: str, a: str, b: str) -> str:
    """Bytes with zero point 1 times such bytes: int32."""
    one = g.number(1, np.uint8)
    return g("MatMulInteger", a, b, one, one, to=y, kind="int")


def _matmul(g: Graph, y: str, a: str, b: str) -> None:
    last = list(range(len(g.shape(b))))
    swapped = [*last[:-2], last[-1], last[-2]]
    if g.kind(a) == "bit":
        _whole(g, y, g.levels(a), g("Transpose", g.levels(b), perm=swapped))
    else:
        g("MatMul", a, g("Transpose", b, perm=swapped), to=y)


def _binary_linear(
    g: Graph, y: str, x: str, weight: str, binarize: str = "full", ste: str = "polynomial"
) -> None:
    if binarize == "none":
        _product(g, y, x, weight)
        return
    inside = g.node.inside
    _sign(g, inside["bit"], x)
    if binarize == "activations":
        _product(g, y, g.real(inside["bit"]), weight)
        return
    matrix = g.source.matrix(weight)
    scale = g.constant(inside["weight.scale"], matrix.scale)
    bit = g.constant(inside["weight.bit"], matrix.bit)
    factor = g("Transpose", g.levels(bit), perm=[1, 0])
    whole = _whole(g, inside["int"], g.levels(inside["bit"]), factor)
    g("Mul", g.real(whole), scale, to=y)


def _boolean_attention(
    g: Graph, y: str, prob: str, value: str, alpha: str, binarize: str = "full",
    context: str = "sum",
) -> None:  # fmt: skip
    if binarize == "none":
        values = g("Transpose", value, perm=[0, 1, 3, 2])
        total = g("MatMul", prob, values, to=y if context == "sum" else None)
        if context == "differences":
            count = g("ReduceSum", prob, g.sizes(3), keepdims=1)
            g("Sub", total, g("Mul", count, values), to=y)
        return
    inside = g.node.inside
    step = g.constant(f"{alpha}.step", boolean.step_of(g.source.array(alpha)))
    ratio, bit, whole = (inside[key] for key in ("prob.z", "prob.bit", "context.int"))
    g("Greater", g("Div", prob, step, to=ratio), g.number(0.5), to=bit, kind="bit")
    values = g("Transpose", g.levels(value), perm=[0, 1, 3, 2])
    points = g.number(0, np.uint8), g.number(1, np.uint8)
    total = g("MatMulInteger", g("Cast", bit, to_type=BYTE), values, *points, kind="int",
              to=whole if context == "sum" else None)  # fmt: skip
    if context == "differences":
        count = g("ReduceSum", g("Cast", bit, to_type=INT), g.sizes(3), keepdims=1)
        signs = g("Sub", g("Cast", values, to_type=INT), g.number(1, np.int32))
        g("Sub", total, g("Mul", count, signs), to=whole, kind="int")
    g("Mul", g.real(whole), step, to=y)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "band_sum": _band_sum,
    "bands": _bands,
    "batch_norm": _batch_norm,
    "binary_linear": _binary_linear,
    "boolean_attention": _boolean_attention,
    "box": _box,
    "class_token": _class_token,
    "convolution": _convolution,
    "differential": _differential,
    "divide": _divide,
    "drop_class_token": _drop_class_token,
    "fit": _fit,
    "from_grid": _from_grid,
    "gelu": _gelu,
    "identity": _same,
    "interpolate": _interpolate,
    "join_windows": _join_windows,
    "layer_norm": _layer_norm,
    "layer_scale": _layer_scale,
    "linear": _linear,
    "matmul": _matmul,
    "merge_heads": _merge_heads,
    "merge_patches": _merge_patches,
    "neighbours": _neighbours,
    "patch_embed": _patch_embed,
    "pool": _pool,
    "position_bias": _position_bias,
    "position_embedding": _moved,
    "rescale": _rescale,
    "rprelu": _rprelu,
    "shift": _moved,
    "sign": _sign,
    "softmax": _softmax,
    "split": _split,
    "split_heads": _split_heads,
    "stop_gradient": _same,
    "to_grid": _to_grid,
    "window_softmax": _window_softmax,
    "windows": _windows,
}
