"""How far a correct port may be from the reference at every element of a tap [SPEC 8.2].

Computed, never guessed: the op of the tap runs on arrays that carry a bound of their error. What
an op writes into an array that it made, where an error would get lost, is written out here.

    replay   the op alone, on exactly these inputs; gamma_n * sum |terms|, in any order
    free     every input off by free_margin * u already: free_margin * u * sum |terms|, the largest
             along the last axis, since errors of earlier layers mix along it. Or, where that is
             more, what an error becomes on its way through all ops before: a LayerNorm of a row
             that hardly varies divides it by sqrt(var + eps), and no term of a later op shows that
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.golden import record
from refimpl.golden.bounded import SECOND_ORDER, Arithmetic, Bounded
from refimpl.golden.record import INPUT, Step
from refimpl.models import VisionTransformer, flatten
from refimpl.models.nodes import Network, Node
from refimpl.models.params import Params
from refimpl.models.replay import Evaluator

FREE_MARGIN = 64
# Of free_margin: a value's own noise, 8 u, where errors add up in squares. A mean of 6 equal
# numbers is off by 2 u; one of 200, added up one by one, by up to 50 u: such rows would need more.
NOISE = 1 / 8
CORRELATED = 16.0  # what follows from one open kink of a gradient adds up, other than noise
UNITS = {name: float(np.finfo(name).eps) / 2 for name in ("float32", "float64")}
REFERENCE = UNITS["float64"]
# Numbers below this are lost to underflow in float32, or made of lost ones.
UNDERFLOW = float(np.finfo(np.float32).tiny) * 2.0**20
UNKNOWN = 1e20  # an error beyond it is as good as none that is known; no port computes such values
LATEST = 50  # arrays that are kept because a tap soon after reads them
# Of the sum of the magnitudes of a value's terms: a wider bound of most elements says nothing.
BLUNT = 1 / 4


class Reference(NamedTuple):
    """The float64 network whose taps are judged."""

    network: Network
    params: Mapping[str, np.ndarray]  # by path
    steps: Mapping[str, Step]  # as `record.trace` gave them


def reference(
    model: VisionTransformer,
    params: Params,
    images: np.ndarray,
    dlogits: np.ndarray | None = None,
) -> Reference:
    """Run a network in float64, whatever the types of its arrays; errors as `model.forward`."""
    params, images = record.cast(params, np.float64), images.astype(np.float64)
    dlogits = None if dlogits is None else dlogits.astype(np.float64)
    steps = record.trace(model, params, images, dlogits)
    return Reference(model.network, flatten(params), steps)


def replay(
    reference: Reference, name: str, inputs: Sequence[np.ndarray], unit: float
) -> np.ndarray:
    """Bound for tap `name`, computed with unit roundoff `unit` from exactly `inputs`.

    `inputs`: values of the step's inputs, reals as float64. Of a bit it is tau, the bound of its z,
    where `inputs` are those of z. Like the value, float64.
    """
    step = reference.steps[name]
    step = reference.steps[step.z] if step.kind == "bit" else step
    # the reference rounds, too
    arithmetic = Arithmetic(unit + REFERENCE)
    given = [arithmetic.value(x) for x in inputs]
    # on absurd inputs everything may be off: exp of an error of 1000 is more than float64 holds
    with np.errstate(over="ignore", invalid="ignore"):
        error = SECOND_ORDER * bounded(step, given, arithmetic).error() + UNDERFLOW
    return np.where(np.isnan(error), np.inf, error)


class Free:
    """Bounds for a whole run with unit roundoff `unit`, tap by tap: `Free(reference, unit)[name]`.

    Of a bit it is tau of its z. The terms of a band are its pixels, since its details cancel. A
    real inherits what the op before it adds, where that is more. What came before that op arrives
    in squares, for errors that know nothing of one another: every value is off by its own noise,
    and by what the op makes of the noise of all values before it. A gradient may cancel down to
    nothing but that; its values are off by the whole margin.
    """

    def __init__(self, reference: Reference, unit: float, margin: float = FREE_MARGIN):
        self.reference, self.steps = reference, reference.steps
        self.unit, self.spread = unit, margin * unit
        self._terms: dict[str, np.ndarray] = {}  # tap -> spread * sum |terms|
        self._squares: dict[str, np.ndarray] = {}  # tap -> square of what it inherits
        self._sizes: dict[str, float] = {}  # tap that was asked for -> rms of sum |terms|

    def __getitem__(self, name: str) -> np.ndarray:
        step = self.steps[name]
        if step.kind == "int":
            return np.full(step.value.shape, UNDERFLOW)
        z = step.z if step.kind == "bit" else name
        if step.is_gradient:
            error = _spread_out(np.maximum(self._arriving(z), self._rounding(z)))
        else:
            error = np.maximum(self._of_last_ops(z, step.kind), self._arriving(z))
        return error + UNDERFLOW

    def is_blunt(self, name: str, error: np.ndarray) -> bool:
        """Whether `error`, this tap's as asked for before, holds garbage, too: of most elements."""
        step = self.steps[name]
        size = self._sizes[step.z if step.kind == "bit" else name]
        return bool(error.size) and not np.median(error) <= BLUNT * size + UNDERFLOW

    def _of_last_ops(self, z: str, kind: str) -> np.ndarray:
        """From the terms of the op that made it; those of a real's inputs have terms, too."""
        if _is_ratio(self.steps[z]):
            return self._terms_of(z)
        if kind == "bit":
            return _spread_out(self._terms_of(z))
        terms = self._run(z, self.steps[z].inputs)
        return _spread_out(np.maximum(terms, self._rounding(z)))

    def _rounding(self, name: str) -> np.ndarray:
        """A probability has no terms, but it rounds."""
        return self.spread * np.abs(self.steps[name].value)

    def _terms_of(self, name: str) -> np.ndarray:
        """spread * sum |terms| of the op that gives this tap."""
        if name not in self._terms:
            bands = [read for read in self.steps[name].inputs if _is_band(self.steps[read])]
            self._terms[name] = self._run(name, bands)
            if len(self._terms) > LATEST:
                del self._terms[next(iter(self._terms))]
        return self._terms[name]

    def _run(self, name: str, composed: Sequence[str]) -> np.ndarray:
        """The op with every input off by `spread`; those of `composed` by that of their terms."""
        step = self.steps[name]
        if _is_ratio(step):
            return self.spread * step.value
        arithmetic, given = Arithmetic(0.0, self.spread), []
        for read in step.inputs:
            given.append(arithmetic.value(self.steps[read].value))
            if read in composed and self.steps[read].kind == "real" and read != INPUT:
                given[-1].inherited = np.maximum(given[-1].inherited, self._terms_of(read))
        return bounded(step, given, arithmetic).error()

    def _arriving(self, name: str) -> np.ndarray:
        """The error that all steps up to this one leave in it.

        In order of computation, since a chain of them is deeper than Python calls functions.
        """
        names = list(self.steps)
        for step in names[: names.index(name) + 1]:
            if step not in self._squares or step == name:
                found = self._with_history(step)
                self._squares[step] = np.fmin(found.inherited, UNKNOWN**2)  # of no number, too
        self._sizes[name] = rms(found.size)
        return np.fmin(found.error(), UNKNOWN)

    def _with_history(self, name: str) -> Bounded:
        """The op on inputs that carry their noise and what has arrived in them."""
        step = self.steps[name]
        if self.steps[name].is_gradient:
            arithmetic = Arithmetic(self.unit, self.spread, power=2, jump=CORRELATED)
        else:
            arithmetic = Arithmetic(0.0, NOISE * self.spread, power=2)
        if step.kind != "real" or name == INPUT:
            return Bounded(step.value, np.zeros(()), 0, np.zeros(()), arithmetic)
        given = [self._given(read, name, arithmetic) for read in step.inputs]
        # far beyond UNKNOWN an exp or a square is infinite, and a difference of such no number
        with np.errstate(over="ignore", invalid="ignore"):
            return bounded(step, given, arithmetic)

    def _given(self, read: str, reader: str, arithmetic: Arithmetic) -> Bounded:
        given = arithmetic.value(self.steps[read].value)
        if self.steps[reader].is_gradient and not self.steps[read].is_gradient:
            given.inherited = _spread_out(given.inherited)
        given.inherited = given.inherited + self._squares[read]
        return given


def _is_ratio(step: Step) -> bool:
    """Whether it is q, what the boolean compares with 1/2."""
    return step.op is not None and step.op.shown.what == "prob.z"


def _is_band(step: Step) -> bool:
    return step.op is not None and step.op.node.op == "bands" and not step.is_gradient


def rms(array: np.ndarray) -> float:
    """Give the root mean square, 0 of no elements."""
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def _spread_out(error: np.ndarray) -> np.ndarray:
    """Earlier errors mix along the last axis: each element may have the largest of its row."""
    if not error.ndim:
        return error
    return np.broadcast_to(error.max(axis=-1, keepdims=True), error.shape)


def bounded(step: Step, given: Sequence[Bounded], arithmetic: Arithmetic) -> Bounded:
    """Run the op of a step on arrays that carry their error; the value with its own."""
    result = _run(step, given, arithmetic)
    if isinstance(result, Bounded):
        return result
    zero = np.zeros(result.shape)  # a whole number, or a gradient that is 0 by declaration
    return Bounded(result, zero, 0, zero, arithmetic)


def _run(step: Step, given: Sequence[Bounded], arithmetic: Arithmetic) -> Bounded | np.ndarray:
    if step.kind == "int":
        return step.value
    if step.op is None:  # the gradient of the logits: given, and cast to the candidate's type
        return arithmetic.value(step.value, roundings=1)
    return unwrapped(step.op.run(given, lambda taps, params: _Bounds(taps, params, arithmetic)))


def unwrapped(result: Any) -> Any:
    """np.array and np.asarray of an op wrap a Bounded, which they do not know."""
    return result.item() if isinstance(result, np.ndarray) and result.dtype == object else result


def evaluator(arithmetic: Arithmetic) -> Evaluator:
    """Give what runs single nodes and steps on arrays that carry their error."""
    return _Bounds({}, {"": np.zeros(())}, arithmetic)


class _Bounds(Evaluator):
    """Runs nodes on arrays that carry their error.

    As the ops do, but for those that write into arrays of their own, or whose parameters alone
    decide on a branch.
    """

    def __init__(self, taps: Mapping[str, Any], params: Mapping[str, Any], arithmetic: Arithmetic):
        super().__init__(taps, params)
        self.arithmetic = arithmetic

    def forward(self, node: Node, args: list[Any]) -> Any:
        if node.tap == "gradient":  # the ratio's error is known from the scores
            return _Softmax(node, args[0])
        run = FORWARD.get(node.op)
        return run(node, args[0]) if run else unwrapped(super().forward(node, args))

    def backward(self, node: Node, dy: Any, args: list[Any], output: Any, position: int) -> Any:
        run = BACKWARD.get(node.op)
        if run and position == 0:
            return run(node, dy, args)
        return unwrapped(super().backward(node, dy, args, output, position))

    def step(self, node: Node, key: str, function: Callable, args: list[Any]) -> Any:
        if isinstance(args[0], _Softmax):
            return _ratio(*args, self.arithmetic)
        if key in ("weight.z", "weight.scale") or (key == "d.p0" and node.op == "binary_linear"):
            # the clip at |Wc| <= 1 may be open
            args = [a if isinstance(a, Bounded) else self.arithmetic.value(a, roundings=1)
                    for a in args]  # fmt: skip
        return function(*args)


class _Softmax(NamedTuple):
    """A softmax that nobody sees, in front of a boolean."""

    node: Node
    scores: Bounded


def _ratio(softmax: _Softmax, alpha: np.ndarray, arithmetic: Arithmetic) -> Bounded:
    """q = softmax(s) / alpha': q * (gamma_{N+8} + 4 u (|s| + max |s|)), and what s is off by."""
    node, scores = softmax
    prob = getattr(ops, node.op).forward(scores.value, **node.attributes)[0]
    q = ops.boolean.threshold(prob, alpha)[0]
    magnitude, inherited = np.abs(scores.value), scores.error()
    argument = magnitude + magnitude.max(axis=-1, keepdims=True)
    shift = inherited + inherited.max(axis=-1, keepdims=True)
    tokens, unit = q.shape[-1], arithmetic.unit
    error = q * (arithmetic.gamma(tokens + 8) + 4 * unit * argument + np.expm1(shift))
    return Bounded(q, q, 0, error**arithmetic.power, arithmetic)


def _mean(function: Callable, x: Bounded, roundings: int) -> Bounded:
    """`function` takes weighted means; of |x| it is the sum of the terms."""
    parts = function(x.value), function(x.size), x.roundings + roundings, function(x.inherited)
    return Bounded(*parts, x.arithmetic)


def _bands(node: Node, x: Bounded) -> tuple[Bounded, Bounded]:
    mode, first = node.attributes["mode"], node.stage.num_prefix_tokens
    split = mode != "none"
    low = _mean(
        lambda a: ops.bands.forward(a, **node.attributes)[0][0], x, roundings=5 if split else 0
    )
    # each detail has the four pixels of the low band as its terms, and the sum has three details
    details = 3 if split else 1
    high = Bounded(
        ops.bands.forward(x.value, **node.attributes)[0][1],
        details * low.size,
        low.roundings,
        details * low.inherited,
        x.arithmetic,
    )
    if node.attributes["cls"] == "low":
        high.size[:, :first] = high.inherited[:, :first] = 0
    return low, high


def _bands_backward(node: Node, dy: tuple[Bounded, Bounded], args: list[Any]) -> Bounded:
    """4 pixels a band; the three details have one gradient."""
    dlow, dhigh = dy
    cache = ops.bands.Cache(**node.attributes)

    def adjoint(dlow: np.ndarray, dhigh: np.ndarray) -> np.ndarray:
        return ops.bands.backward((dlow, dhigh), cache)[0]

    # the adjoint of the low band takes means: of errors with weights 1 and 3 (the three details),
    # of their squares with the sums of the squared coefficients
    low, high = {1: (1.0, 3.0), 2: (0.25, 0.75)}[dlow.arithmetic.power]
    details = 3
    if node.attributes["mode"] == "none":  # each band is x
        low, high, details = 1.0, 1.0, 1
    return Bounded(
        adjoint(dlow.value, dhigh.value),
        adjoint(dlow.size + details * dhigh.size, 0 * dhigh.size),
        dlow.roundings + dhigh.roundings + 16,
        adjoint(low * dlow.inherited + high * dhigh.inherited, 0 * dhigh.inherited),
        dlow.arithmetic,
    )


def _neighbours(node: Node, x: Bounded) -> Bounded:
    return _mean(lambda a: ops.neighbours.forward(a, **node.attributes)[0], x, roundings=9)


def _neighbours_backward(node: Node, dy: Bounded, args: list[Any]) -> Bounded:
    cache = ops.neighbours.forward(np.zeros(dy.shape), **node.attributes)[1]
    return _mean(lambda a: ops.neighbours.backward(a, cache)[0], dy, roundings=9)


def _interpolate(node: Node, x: Bounded) -> Bounded:
    """An entry is the weighted mean of four, one axis after the other."""
    found = _mean(lambda a: ops.interpolate.forward(a, **node.attributes)[0], x, roundings=6)
    return _placed(found, x.shape[-2:], node.attributes["size"])


def _interpolate_backward(node: Node, dy: Bounded, args: list[Any]) -> Bounded:
    """A sum over all entries of a column, then over all of a row."""
    grid, size = args[0].shape[-2:], node.attributes["size"]
    cache = ops.interpolate.forward(np.zeros(args[0].shape), **node.attributes)[1]
    found = _mean(lambda a: ops.interpolate.backward(a, cache)[0], dy, roundings=sum(size) + 2)
    return _placed(found, grid, size)


def _resize_tokens(node: Node, x: Bounded) -> Bounded:
    found = _mean(lambda a: ops.resize_tokens.forward(a, **node.attributes)[0], x, roundings=6)
    return _placed(found, node.attributes["grid"], node.attributes["new_grid"])


def _resize_tokens_backward(node: Node, dy: Bounded, args: list[Any]) -> Bounded:
    cache = ops.resize_tokens.forward(np.zeros(args[0].shape), **node.attributes)[1]
    grid, size = node.attributes["grid"], node.attributes["new_grid"]
    found = _mean(
        lambda a: ops.resize_tokens.backward(a, cache)[0], dy, roundings=sum(size) + 2
    )
    return _placed(found, grid, size)


def _placed(found: Bounded, grid: tuple[int, int], size: tuple[int, int]) -> Bounded:
    """A port may compute where an entry lies in its own type, as PyTorch does.

    The weights of both neighbours are then off by the rounding of a number as large as the grid,
    also where they should be 0. Between grids that differ by a power of 2 all of it is exact.
    """
    if all(n and (m // n).bit_count() == 1 and m % n == 0 for m, n in zip(size, grid)):
        return found
    largest = np.abs(found.size).max()
    error = 8 * sum(grid) * found.arithmetic.unit * largest
    found.inherited = found.inherited + error**found.arithmetic.power
    return found


def _pool_backward(node: Node, dy: Bounded, args: list[Any]) -> Bounded:
    """The same at every token, or at the class token alone."""
    tokens = args[0].shape[1]
    mean = node.attributes["pool"] == "mean"
    rows = [(dy / float(tokens) if mean else dy)[:, None]] * (tokens if mean else 1)
    rest = np.zeros((dy.shape[0], tokens - len(rows), dy.shape[1]))
    return np.concatenate([*rows, rest], axis=1)


FORWARD = {
    "bands": _bands,
    "neighbours": _neighbours,
    "interpolate": _interpolate,
    "resize_tokens": _resize_tokens,
}
BACKWARD = {
    "bands": _bands_backward,
    "neighbours": _neighbours_backward,
    "interpolate": _interpolate_backward,
    "resize_tokens": _resize_tokens_backward,
    "pool": _pool_backward,
}
