"""What a mistake inside an operation makes of its tap, by running that operation wrongly.

The operation is the tap's own replay, with a parameter, an attribute of a node or an input changed.
Each function takes a Case and yields guesses, as in `fingerprints`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from refimpl import ops
from refimpl.conventions import RefimplError
from refimpl.golden.fingerprints import LAYOUTS, Case, Guess
from refimpl.golden.record import Step
from refimpl.models import Config, insides
from refimpl.models.insides import dot, signs
from refimpl.models.nodes import Node, Parameter
from refimpl.models.packing import WORD
from refimpl.models.replay import Evaluator

RPRELU = ("shift_in", "slope", "shift_out", "token_shift_in", "token_shift_out")
# Attributes of an operation that a port may have got wrong: field of the configuration, values.
# An attribute with the name of a field of the configuration has the choices of that field.
ATTRIBUTES: dict[tuple[str, str], tuple[str, tuple]] = {
    ("bands", "mode"): ("haar_mode", ops.bands.MODES),
    ("bands", "cls"): ("haar_cls", ops.bands.CLS),
    ("neighbours", "border"): ("neighbours", ops.neighbours.BORDERS),
    ("layer_norm", "eps"): ("norm_eps", (1e-5, 1e-6, 1e-12, 0.0)),
    ("batch_norm", "eps"): ("norm_eps", (1e-5, 1e-3, 1e-6, 0.0)),
    ("pool", "pool"): ("pool", ops.pool.POOLS),
}
CHOICES = {f.name: f.metadata["choices"] for f in fields(Config) if "choices" in f.metadata}
STEPS = ("binarize",)  # another value has other steps: no port mistakes it for another


class Operation:
    """What made one tap, to be done wrongly."""

    def __init__(self, step: Step):
        self.step, self.reads = step, step.inputs

    @property
    def known(self) -> bool:
        """Whether it was computed; the gradient of the logits is given."""
        return self.step.op is not None

    @property
    def what(self) -> str:
        """The value of a node that it is; see `models.replay.Shown`."""
        return self.step.op.shown.what if self.known else ""

    @property
    def node(self) -> Node:
        return self.step.op.node

    @property
    def params(self) -> Mapping[str, np.ndarray]:
        """Of the whole network, by path."""
        return self.step.op.params

    @property
    def nodes(self) -> list[Node]:
        """All that it runs."""
        shown = self.step.op.shown
        return [self.step.op.network.nodes[i] for i in shown.nodes]

    def makes(self, *names: str) -> bool:
        """Whether it is the output of such an operation, forward."""
        return self.known and self.what == "output" and self.node.op in names

    def runs(self, *names: str) -> bool:
        """Whether such an operation is among those that it runs, forward."""
        is_forward = self.known and not self.step.is_gradient
        return is_forward and any(node.op in names for node in self.nodes)

    @property
    def root(self) -> float | None:
        """sqrt(d), where the tap was divided by it."""
        for node in self.nodes if self.known and self.what == "output" else ():
            if node.op in ("divide", "band_sum"):
                by = node.attributes
                return by["divisor"] if node.op == "divide" else float(np.sqrt(by["head_dim"]))
        return None

    def param(self, position: int) -> np.ndarray:
        """A parameter of the node, by its place among them."""
        return self.params[self.node.params[position]]

    def __call__(
        self,
        inputs: Sequence[np.ndarray],
        params: Mapping[str, np.ndarray] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> np.ndarray | None:
        """The tap from its inputs, with other parameters or attributes; None if impossible."""
        if not self.known:
            return None
        changed = {**self.params, **(params or {})}
        try:
            return self.step.op.run(inputs, lambda t, p: _Changed(t, p, attributes or {}), changed)
        except (RefimplError, ValueError, IndexError, TypeError):  # no network has this mistake
            return None

    def own_params(self) -> Iterator[tuple[str, Parameter]]:
        """The parameters that it takes: path, and what is declared of each."""
        declared = self.step.op.network.parameters if self.known else {}
        for path in self.step.op.shown.params if self.known else ():
            yield path, declared[path]


class _Changed(Evaluator):
    """Every node that has one of these attributes has it with another value."""

    def __init__(self, taps: Any, params: Any, attributes: Mapping[str, Any]):
        super().__init__(taps, params)
        self.attributes = attributes

    def forward(self, node: Node, args: list[Any]) -> Any:
        return super().forward(self._changed(node), args)

    def backward(self, node: Node, dy: Any, args: list[Any], output: Any, position: int) -> Any:
        return super().backward(self._changed(node), dy, args, output, position)

    def step(self, node: Node, key: str, function: Callable, args: list[Any]) -> Any:
        changed, inside = self._changed(node), None
        if changed != node:
            inside = insides.of(changed)
            steps = {**inside.values, **{f"d.{k}": s for k, s in inside.gradients.items()}}
            function = steps[key].function if key in steps else function
        return super().step(changed, key, function, args)

    def _changed(self, node: Node) -> Node:
        known = {k: v for k, v in self.attributes.items() if k in node.attributes}
        return node._replace(attributes={**node.attributes, **known}) if known else node


# --- an input, a parameter, a field ---------------------------------------------------------------


def inputs_changed(case: Case) -> Iterator[Guess]:
    """An input left out, taken for another one, or handed on as it was."""
    op, inputs = case.operation, case.inputs()
    for name, value in zip(op.reads, inputs):
        if value.shape == case.expected.shape and value.dtype != bool:
            yield Guess(_nothing_done(op, name), value.astype(np.float64))
    for i, value in enumerate(inputs):
        if len(inputs) > 1 and value.dtype.kind in "fi":
            changed = [*inputs[:i], np.zeros_like(value), *inputs[i + 1 :]]
            yield from _guess(f"{op.reads[i]} left out", op(changed))
    for i in range(len(inputs)):
        for j in range(i):
            same = inputs[i].shape == inputs[j].shape and inputs[i].dtype == inputs[j].dtype
            if same:
                changed = list(inputs)
                changed[i], changed[j] = inputs[j], inputs[i]
                yield from _guess(f"{op.reads[j]} and {op.reads[i]} exchanged", op(changed))


def _nothing_done(op: Operation, read: str) -> str:
    if op.makes("divide", "band_sum", "position_bias"):
        return "scale missing: no division by sqrt(d)"
    if op.makes("binary_linear", "boolean_attention"):
        return f"scale missing: equal to {read}"
    if op.runs("shift"):
        return f"move missing: equal to {read}"
    return f"nothing done: equal to {read}"


def params_changed(case: Case) -> Iterator[Guess]:
    """A parameter left out, or with the wrong sign."""
    op, inputs = case.operation, case.inputs()
    for path, declared in op.own_params():
        value = op.params[path]
        neutral = np.ones_like(value) if declared.traits.factor else np.zeros_like(value)
        yield from _guess(f"{path} left out", op(inputs, {path: neutral}))
        yield from _guess(f"{path} has the wrong sign", op(inputs, {path: -value}))


def kernels_turned(case: Case) -> Iterator[Guess]:
    """The kernel of a convolution, or of the patch embedding, read in another order."""
    op, inputs = case.operation, case.inputs()
    for path, declared in op.own_params():
        kernel = op.params[path]
        if declared.role == "kernel":
            turned, exchanged = kernel[:, :, ::-1, ::-1], kernel.swapaxes(2, 3)
            yield from _guess(f"{path}: the kernel turned around", op(inputs, {path: turned}))
            cause = f"{path}: rows and columns of the kernel exchanged"
            yield from _guess(cause, op(inputs, {path: exchanged}))


def fields_changed(case: Case) -> Iterator[Guess]:
    """Another value of a field of the configuration, an attribute of an operation."""
    op, inputs = case.operation, case.inputs()
    tried: dict[str, Any] = {}
    for node in op.nodes if op.known else ():
        for name, own in node.attributes.items():
            if (node.op, name) in ATTRIBUTES:
                tried[name] = (*ATTRIBUTES[node.op, name], own)
            elif name in CHOICES and name not in STEPS:
                tried[name] = (name, CHOICES[name], own)
    for name, (field, values, own) in tried.items():
        for value in values:
            if value != own:
                cause = f"{field} is {own!r}, the candidate seems to take {value!r}"
                yield from _guess(cause, op(inputs, attributes={name: value}))


# --- products of bits -----------------------------------------------------------------------------


def operands(case: Case) -> Iterator[Guess]:
    """A product of the right bits, read wrongly."""
    op, inputs = case.operation, case.inputs()
    if len(inputs) != 2 or any(value.dtype != bool for value in inputs):
        return
    a, b = inputs
    for cause, change in LAYOUTS.items():
        yield from _guess(f"{cause}, in one operand of the product", op([change(a), b]))
    boolean = op.what == "context.int"
    size = a.shape[-1]
    for width in (WORD, 32, 8):
        whole = size // width * width
        cause = f"the last {size - whole} of {size} bits left out: a word that is not full"
        part = op([a[..., :whole], b[..., :whole]]) if whole < size else None
        if part is not None:
            yield Guess(cause, part)
            if not boolean:  # K - 2 popcount(a ^ w) with the whole K: as if they were equal
                yield Guess(cause, part + (size - whole))
    if boolean:
        cause = "the boolean matrix taken as -1 and +1; its bits mean 0 and 1"
        yield from _guess(cause, dot(signs(a, np.int32), signs(b, np.int32)))
        cause = "polarity inverted: the boolean matrix's bits"
        yield from _guess(cause, op([~a, b]))


# --- single operations ----------------------------------------------------------------------------


def haar(case: Case) -> Iterator[Guess]:
    """Norm of the bands, rows and columns, details."""
    op = case.operation
    if not op.makes("bands"):
        return
    (x,), node = case.inputs(), op.node
    first, mode = node.stage.first, node.attributes["mode"]
    for factor, norm in ((2.0, "ortho"), (4.0, "no norm")):
        cause = f"Haar norm: {norm} instead of average, factor {factor:g} on the patches"
        yield Guess(
            cause, np.concatenate([case.expected[:, :first], factor * case.expected[:, first:]], 1)
        )
    without = case.expected.copy()
    without[:, :first] = 0
    yield Guess(f"class token left out of {case.name}", without)
    band = node.outputs.index(op.step.op.shown.source)
    cause = "H and V bands swapped: rows and columns of the patch grid exchanged"
    flipped = {**node.attributes, "grid": case.grid[::-1]}
    yield Guess(cause, ops.bands.forward(x, **flipped)[0][band])
    if band and mode != "none":
        yield from _details(case, x, first)


def _details(case: Case, x: np.ndarray, first: int) -> Iterator[Guess]:
    grid = x[:, first:].reshape(len(x), *case.grid, -1).transpose(0, 3, 1, 2)
    _, (cH, cV, cD) = ops.haar.swt2(grid, case.operation.node.attributes["mode"], norm="average")
    for cause, high in (
        ("H and V bands swapped: V taken twice, H never", cV + cV + cD),
        ("H and V bands swapped: H taken twice, V never", cH + cH + cD),
        ("the H band has the wrong sign", cV - cH + cD),
        ("the V band has the wrong sign", cH - cV + cD),
        ("the D band has the wrong sign", cH + cV - cD),
        ("the H band left out", cV + cD),
        ("the V band left out", cH + cD),
        ("the D band left out", cH + cV),
    ):
        patches = high.transpose(0, 2, 3, 1).reshape(x[:, first:].shape)
        yield Guess(cause, np.concatenate([case.expected[:, :first], patches], axis=1))


def softmax(case: Case) -> Iterator[Guess]:
    """The axis of the softmax."""
    op = case.operation
    if op.runs("softmax", "window_softmax"):
        (scores,) = case.inputs()
        wrong = op([scores.swapaxes(-1, -2)])
        if wrong is not None:
            yield Guess("softmax over the queries, not the keys", wrong.swapaxes(-1, -2))


def layer_norm(case: Case) -> Iterator[Guess]:
    """The variance's divisor."""
    op = case.operation
    if op.makes("layer_norm"):
        C, bias = case.expected.shape[-1], op.param(1)
        value = (case.expected - bias) * np.sqrt((C - 1) / C) + bias
        yield Guess("unbiased variance: divided by C - 1, not by C", value)


def merged_heads(case: Case) -> Iterator[Guess]:
    """Channels of the heads put together in another order."""
    if case.operation.runs("merge_heads"):
        (context,) = case.inputs()  # (B, heads, N, d)
        batch, count, tokens, d = context.shape
        apart = context.transpose(0, 2, 3, 1).reshape(batch, tokens, count * d)
        unmoved = context.reshape(batch, tokens, count * d)
        for channels in (apart, unmoved):
            value = case.operation([ops.split_heads.forward(channels, count)[0]])
            yield from _guess("heads transposed: channel c belongs to head c // d", value)


def rprelu(case: Case) -> Iterator[Guess]:
    """The side of the slope, the sign and the axis of the shifts."""
    op, inputs = case.operation, case.inputs()
    if not op.makes("rprelu"):
        return
    own = dict(zip(RPRELU, op.node.params))
    params = {leaf: op.params[path] for leaf, path in own.items()}
    neutral = {leaf: np.full_like(p, leaf == "slope") for leaf, p in params.items()}
    y = op(inputs, {own[leaf]: value for leaf, value in neutral.items()})  # what RPReLU reads
    if y is None:
        return
    channel = {leaf: params[leaf] for leaf in RPRELU[:3]}
    token = {leaf: params[leaf] for leaf in RPRELU[3:] if leaf in params}
    yield from _guess("RPReLU's slope on the wrong side", _wrong_side(y, params))
    if token:
        yield from _wrong_axis(y, channel, token)
        late = {leaf: np.roll(value, 1) for leaf, value in token.items()}
        early = {leaf: np.roll(value, -1) for leaf, value in token.items()}
        for moved in (late, early):
            value = ops.rprelu.forward(y, **channel, **moved)[0]
            yield Guess("off-by-one shift of the token shifts", value)
        yield Guess("token shifts left out", ops.rprelu.forward(y, **channel)[0])
    yield from _fit(case, y, params)


def _wrong_axis(
    y: np.ndarray, channel: Mapping[str, np.ndarray], token: Mapping[str, np.ndarray]
) -> Iterator[Guess]:
    """Shift n mod N at channel n, for one of the token shifts or both."""
    right = {leaf: value[:, None] for leaf, value in token.items()}  # (N, 1)
    wrong = {leaf: np.resize(value, y.shape[-1]) for leaf, value in token.items()}  # (C,)
    for chosen in (
        wrong,
        {**right, "token_shift_in": wrong["token_shift_in"]},
        {**right, "token_shift_out": wrong["token_shift_out"]},
    ):
        inner = ops.rprelu.forward(y - chosen["token_shift_in"], **channel)[0]
        cause = "token shifts on the wrong axis: along the channels"
        yield Guess(cause, inner + chosen["token_shift_out"])


def _wrong_side(y: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """where(u > 0, slope u, u) = -RPReLU(-y) with the shifts' signs turned."""
    turned = {leaf: value if leaf == "slope" else -value for leaf, value in params.items()}
    return -ops.rprelu.forward(-y, **turned)[0]


def _fit(case: Case, y: np.ndarray, params: Mapping[str, np.ndarray]) -> Iterator[Guess]:
    """Channels of the shortcut of a projection in another order."""
    if not case.operation.runs("fit"):  # attention's output has none
        return
    norm, x = case.inputs()
    inputs, outputs = x.shape[-1], norm.shape[-1]
    if outputs > inputs:
        wrong, cause = np.repeat(x, outputs // inputs, axis=-1), "fit by repeat instead of tile"
    elif inputs > outputs:
        wrong = x.reshape(*x.shape[:-1], inputs // outputs, outputs).mean(axis=-2)
        cause = "fit by means over channels O apart instead of neighbours"
    else:
        return
    yield Guess(cause, ops.rprelu.forward(norm + wrong, **params)[0])
    yield Guess("fit left out", ops.rprelu.forward(norm, **params)[0])


def weights(case: Case) -> Iterator[Guess]:
    """Centring and scale of binary weights."""
    op, bit = case.operation, case.kind == "bit"
    if op.what not in ("weight.z", "weight.scale", "weight.bit"):
        return
    weight = op.param(0)
    centred = weight - weight.mean(axis=1, keepdims=True)
    columns = weight - weight.mean(axis=0)
    if op.what == "weight.scale":
        yield Guess("scale from the centred weights, not the weights", np.abs(centred).mean(axis=1))
        yield Guess("scale is the largest weight, not the mean", np.abs(weight).max(axis=1))
    else:
        yield Guess("weights not centred", weight >= 0 if bit else weight)
        cause = "weights centred over the outputs, not over the inputs"
        yield Guess(cause, columns >= 0 if bit else columns)


def mask(case: Case) -> Iterator[Guess]:
    """The clipped surrogate gradient at |z| = 1."""
    op = case.operation
    if op.what != "d.value" or op.node.attributes.get("ste") != "clip":
        return
    z = case.inputs()[-1]
    if z.shape == case.expected.shape:
        value = np.where(np.abs(z) == 1, 0.0, case.expected)
        yield Guess("surrogate gradient cut off at |z| = 1, where it still passes", value)


def weight_gradient(case: Case) -> Iterator[Guess]:
    """The way back through the binarizer of the weights."""
    op = case.operation
    if op.what != "d.param" or op.node.op != "binary_linear":
        return
    if op.node.attributes["binarize"] != "full":
        return
    dlinear, bit = case.inputs()
    weight = op.param(0)
    centred, used, s = ops.weight_binarizer.binarize(weight)
    rows = dlinear.reshape(-1, dlinear.shape[-1])
    dused = rows.T @ signs(bit, np.float64).reshape(-1, bit.shape[-1])
    inside = dused * (np.abs(centred) <= 1)
    yield Guess("centring forgotten in the gradient of the weights", inside)
    yield Guess(
        "gradient of the weights not clipped at |Wc| = 1", dused - dused.mean(1, keepdims=True)
    )
    scale = s.reshape(-1, 1)
    yield Guess("gradient of the weights times their scale", case.expected * scale)
    through = (dused * signs(centred >= 0, np.float64)).sum(1, keepdims=True)
    through = through * np.sign(weight) / weight.shape[1]
    yield Guess("gradient through the weight scale, which is a constant", case.expected + through)


def _guess(cause: str, value: np.ndarray | None) -> Iterator[Guess]:
    if value is not None:
        yield Guess(cause, value)
